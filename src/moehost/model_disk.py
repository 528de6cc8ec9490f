"""The disk under the model store, by /proc/self/mountinfo, lsblk and the values in sysfs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelDisk:
    """Where the model store lies.

    + mount: where its file system is mounted
    + file_system: its kind
    + options: mount options
    + source: what is mounted
    + disk: name of the disk in the kernel, empty where it is not a single plain one
    + layers: what lies between file system and disk: `lvm`, `crypt`, `raid1` ...
    + is_rotational: whether it turns
    """

    mount: str
    file_system: str
    options: tuple[str, ...]
    source: str
    disk: str
    layers: tuple[str, ...]
    is_rotational: bool

    @property
    def queue(self) -> str:
        """Where the kernel keeps what can be set of the disk."""
        return f"/sys/block/{self.disk}/queue"


def parse(folder: str, mountinfo: str, blocks: str, values: Mapping[str, str]) -> ModelDisk | None:
    """The disk that a folder is on, or will be; None where nothing is said of mounts.

    + blocks: lines of name, type, numbers and parent, as lsblk has them
    + values: values in sysfs, by path
    """
    best: tuple[str, ...] = ()
    for line in mountinfo.splitlines():
        fields = re.match(r"\d+ \d+ (\d+:\d+) \S+ (\S+) (\S+) .*?- (\S+) (\S+)", line)
        is_above = fields and f"{folder}/".startswith(f"{fields[2].rstrip('/')}/")
        # Of two mounts at one place the later one is seen.
        if fields and is_above and (not best or len(fields[2]) >= len(best[1])):
            best = fields.groups()
    if not best:
        return None
    number, mount, options, file_system, source = best
    rows = [line.split() for line in blocks.splitlines()]
    names = {row[2]: row[0] for row in rows if len(row) > 2}
    kinds = {row[0]: row[1] for row in rows if len(row) > 2}
    parents: dict[str, set[str]] = {}
    for row in rows:
        if len(row) > 3:
            parents.setdefault(row[0], set()).add(row[3])
    name, layers = names.get(number, ""), []
    while name and kinds.get(name) != "disk":
        if kinds.get(name) != "part":
            layers.append(kinds.get(name, name))
        above = parents.get(name, set())
        name = above.pop() if len(above) == 1 else ""
    is_rotational = values.get(f"/sys/block/{name}/queue/rotational") == "1" and not re.match("x?vd", name)
    return ModelDisk(mount, file_system, tuple(options.split(",")), source, name, tuple(layers), is_rotational)
