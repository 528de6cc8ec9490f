"""Machines that `moehost node add` wrote: a data file each in `nodes/`, beside the `hosts.py` that reads them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moehost import files

READS_THEM = "import moehost.nodes as _nodes; added = _nodes.hosts(__file__)"
# The best first: what a machine is known by.
KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")


class NodesError(ValueError):
    """One line: what, where, how to mend it."""


@dataclass(frozen=True)
class HostKey:
    """A public key of a machine's SSH server.

    + where: the server as known_hosts names it: `ADDRESS` or `[ADDRESS]:PORT`
    """

    where: str
    type: str
    blob: str

    @property
    def fingerprint(self) -> str:
        """As OpenSSH prints it."""
        digest = hashlib.sha256(base64.b64decode(self.blob)).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"

    def line(self, node: str) -> str:
        """The line in known_hosts, which says in its comment whose it is."""
        return f"{self.where} {self.type} {self.blob} moehost:{node}\n"


def host_keys(text: str) -> list[HostKey]:
    """The keys in the lines of a known_hosts file or of ssh-keyscan, the best first."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and words[1] in KEY_TYPES:
            found.append(HostKey(*words[:3]))
    return sorted(found, key=lambda key: KEY_TYPES.index(key.type))


def hosts(hosts_file: str) -> list[tuple[str, dict[str, Any]]]:
    """The machines of the folder `nodes/` beside a `hosts.py`, as pyinfra wants them."""
    return [(path.stem, _data(path)) for path in sorted(Path(hosts_file).parent.glob("nodes/*.json"))]


def _data(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise NodesError(f"{path}: is no JSON ({error}); correct it") from None
    if not isinstance(data, dict):
        raise NodesError(f"{path}: is no JSON object; correct it")
    return data


def path_of(folder: Path, node: str) -> Path:
    """The data file of a machine."""
    return folder / "nodes" / f"{node}.json"


def known_hosts(folder: Path) -> Path:
    """The keys of the machines, in OpenSSH's form."""
    return folder / "known_hosts"


def known(folder: Path, where: str) -> list[HostKey]:
    """The keys that the project knows of a server."""
    path = known_hosts(folder)
    return [key for key in host_keys(path.read_text() if path.exists() else "") if key.where == where]


def where(address: str, port: int) -> str:
    """A server as known_hosts names it."""
    return address if port == 22 else f"[{address}]:{port}"


def lacks_key(folder: Path, node: str, server: str) -> bool:
    """Whether a machine was added at this very server, and its key is not known any more: it was installed anew."""
    path = path_of(folder, node)
    data = _data(path) if path.exists() else {}
    there = where(str(data.get("ssh_hostname")), data.get("ssh_port", 22))
    return there == server and not known(folder, server)


def add(folder: Path, node: str, data: dict[str, Any], key: HostKey) -> Path:
    """Write a machine down: its key first, so that one that is there can always be believed.

    Of one that is there and whose key was forgotten, only the key is written.
    """
    path = path_of(folder, node)
    if path.exists() and not lacks_key(folder, node, key.where):
        raise NodesError(f"{path}: is there; edit it, or `moehost node remove {node}` first")
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [line for line in _key_lines(folder) if not line.rstrip().endswith(f" moehost:{node}")]
    if key not in known(folder, key.where):
        _replace(known_hosts(folder), "".join([*kept, key.line(node)]))
    if not path.exists():
        files.write_json(path, data, indent=2)
    return path


def remove(folder: Path, node: str) -> None:
    """Forget a machine that `add` wrote, and its key."""
    path = path_of(folder, node)
    if not path.exists():
        raise NodesError(f"{path}: is not there; what stands in {folder / 'hosts.py'} is yours to edit")
    path.unlink()
    mine = f" moehost:{node}"
    lines = list(_key_lines(folder))
    if any(line.rstrip().endswith(mine) for line in lines):
        _replace(known_hosts(folder), "".join(line for line in lines if not line.rstrip().endswith(mine)))


def _key_lines(folder: Path) -> Iterator[str]:
    path = known_hosts(folder)
    for line in path.read_text().splitlines() if path.exists() else ():
        yield f"{line}\n"


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    files.sync(fresh)
    fresh.replace(path)
