"""Files on a disk that may lose power: hashing, copying, replacing at once, and the unfinished ones.

Standard library only, as it runs on the node.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own block size
READ_BYTES = 8 << 20


def chunks(path: Path, uncached: bool = False) -> Iterator[memoryview]:
    """A file's bytes in order; each view is only good until the next one is asked for.

    + uncached: from the disk where that is possible, and without keeping them in memory, which others need more
    """
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as stream:
        # What a program has mapped stays: the kernel only lets go of what nobody uses.
        if uncached:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while count := stream.readinto(buffer):
            yield buffer[:count]
            if uncached:
                os.posix_fadvise(stream.fileno(), 0, stream.tell(), os.POSIX_FADV_DONTNEED)


def sha256_of(path: Path, on_bytes: Callable[[int], None] = lambda done_bytes: None, uncached: bool = False) -> str:
    """The sha256 of a file; `on_bytes` hears how far it is, `uncached` as in `chunks`."""
    digest, done_bytes = hashlib.sha256(), 0
    for chunk in chunks(path, uncached):
        digest.update(chunk)
        done_bytes += len(chunk)
        on_bytes(done_bytes)
    return digest.hexdigest()


def copy(origin: Path, to: Path, on_bytes: Callable[[int], None]) -> None:
    """Copies a file with its time of change, by which `alike` knows it again."""
    done_bytes = 0
    with to.open("wb", buffering=0) as stream:
        for chunk in chunks(origin):
            stream.write(chunk)
            done_bytes += len(chunk)
            on_bytes(done_bytes)
    status = origin.stat()
    os.utime(to, ns=(status.st_atime_ns, status.st_mtime_ns))


def alike(origin: Path, stored: Path) -> bool:
    """Whether a file is still the one that its link or copy in the store was made from; reads neither."""
    one, other = origin.stat(), stored.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def write_json(path: Path, data: Any, durable: bool = True, indent: int | None = None) -> None:
    """Replaces a file at once, so that a reader meets the old or the new text and never a piece.

    + durable: it is on the disk before this returns, in the order of the calls
    """
    replace(path, (json.dumps(data, indent=indent) + "\n").encode(), durable)


def replace(path: Path, data: bytes, durable: bool = True) -> None:
    """Replaces a file at once; `durable` as in `write_json`."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(data)
    if durable:
        sync(fresh)
    fresh.replace(path)
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Returns when a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def control_file(part: Path) -> Path:
    """Where aria2 notes which ranges of an unfinished file it has."""
    return part.with_name(f"{part.name}.aria2")


def held_bytes(part: Path) -> int:
    """What a file with holes takes on the disk; 0 where there is none."""
    return part.stat().st_blocks * BLOCK_BYTES if part.exists() else 0


def discard(part: Path) -> None:
    """Forgets an unfinished file."""
    part.unlink(missing_ok=True)
    control_file(part).unlink(missing_ok=True)
