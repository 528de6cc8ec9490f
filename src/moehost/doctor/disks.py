"""The disks that matter: the root and the one with the model store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moehost.finding import Finding
from moehost.settings import Node

GIB_MIB = 1024
# With less than this on a disk something will fail soon; with less than that it is time to look.
LEAST_MIB, SCARCE_MIB = GIB_MIB, 5 * GIB_MIB


@dataclass(frozen=True)
class Disk:
    """A file system that is mounted at `mount`."""

    mount: str
    free_mib: int
    size_mib: int
    is_read_only: bool
    is_rotational: bool


def findings(texts: Mapping[str, str], node: Node) -> Iterator[Finding]:
    """Room, and whether it can be written to; for the model store also whether the disk turns."""
    there = parse(texts)
    root, store = at(there, "/"), at(there, node.models_dir)
    if root and root is not store:
        yield _room(root, LEAST_MIB, "journalctl --vacuum-size=500M; apt-get clean; du -xh / | sort -h | tail")
    if store:
        least_mib = max(LEAST_MIB, node.free_space_reserve_mib)
        yield _room(store, least_mib, f"du -sh {node.models_dir}/*, then remove the models that no service needs")
        if store.is_rotational:
            yield Finding(
                "disk",
                "warning",
                f"{node.models_dir} is on a disk that turns: a load of 200 GB takes a quarter of an hour and more",
                "move the store to an NVMe disk and set models_dir",
            )


def _room(disk: Disk, least_mib: int, make_room: str) -> Finding:
    if disk.is_read_only:
        return Finding(
            "disk",
            "error",
            f"{disk.mount} is mounted read-only",
            f"journalctl -k -g 'I/O error|EXT4-fs|XFS' says why; then mount -o remount,rw {disk.mount}",
        )
    says = f"{disk.mount} has {disk.free_mib / GIB_MIB:.1f} of {disk.size_mib / GIB_MIB:.0f} GiB free"
    if disk.free_mib < least_mib:
        return Finding("disk", "error", says, make_room)
    if disk.free_mib < SCARCE_MIB:
        return Finding("disk", "warning", says, make_room)
    return Finding("disk", "ok", says)


def parse(texts: Mapping[str, str]) -> list[Disk]:
    """The disks by the texts `disks` (df), `mounts` (/proc/self/mounts) and `rotational` (lsblk)."""
    mounts = [line.split() for line in texts["mounts"].splitlines()]
    # Of two mounts at one place the later one is seen.
    options = {fields[1]: fields[3].split(",") for fields in mounts if len(fields) > 3}
    rotational = [line.split() for line in texts["rotational"].splitlines()]
    turning = {fields[1] for fields in rotational if len(fields) == 2 and fields[0] == "1"}
    found = []
    for line in texts["disks"].splitlines()[1:]:
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[1].isdecimal() and fields[3].isdecimal():
            mount = fields[5]
            # Virtual disks say that they turn.
            is_rotational = mount in turning and not re.match("/dev/x?vd", fields[0])
            is_read_only = "ro" in options.get(mount, [])
            found.append(Disk(mount, int(fields[3]), int(fields[1]), is_read_only, is_rotational))
    return found


def at(disks: list[Disk], path: str) -> Disk | None:
    """The disk that a path is on."""
    holding = [each for each in disks if f"{path}/".startswith(f"{each.mount.rstrip('/')}/")]
    return max(holding, key=lambda each: len(each.mount), default=None)
