"""The model store: where a model stands, how its successor is put together beside it and takes its place.

    STORE/NAME/                  shards and manifest.json: whole and verified, or not there at all
        headers.json             the shards' headers, as `python3 -m moehost.gguf` prints them
        tensors.json             their tables of tensors
        damaged.json             files that were found to be others than the manifest says (`moehost.inspection`)
        mended.json              the last damaged.json of a predecessor, whose damaged files were brought anew
    STORE/.incoming/.NAME.lock   held by the run that works on NAME, and by its download program
    STORE/.incoming/NAME.links/  files of others on this disk under a second name, where root has given them one
    STORE/.incoming/NAME/        progress.json, job.json (what the files below belong to)
        files/                   the successor: X.gguf is verified, X.gguf.part is not; manifest.json is last
        old/                     the predecessor, between the two renames of a switch and until it is removed

Standard library only, as it runs on the node. At no point does a crash cost the model that stands: what each
step leaves behind is either continued or finished by the next run.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moehost.files import control_file, discard, held_bytes, sha256_of, sync, write_json
from moehost.source import ModelFile

MIB = 1 << 20


class StoreError(Exception):
    """Why a model did not come into the store, in one line: what, where, how to mend it."""


@dataclass(frozen=True)
class Manifest:
    """What a model in the store is: its origin, its files with their sha256, and what their headers say."""

    model: str
    source: str
    revision: str | None
    files: tuple[ModelFile, ...]
    architecture: str
    tensors: int

    def to_json(self) -> dict[str, Any]:
        """All of it in plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """The inverse of `to_json`; raises ValueError for anything else."""
        try:
            files = tuple(ModelFile(**file) for file in data["files"])
            return cls(**{**data, "files": files})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the manifest of a model: {error}") from None

    def answers(self, source: str, revision: str | None, sha256: Mapping[str, str]) -> bool:
        """Whether this is the model that an owner asks for, with the checksums he states, if any."""
        stored = {file.name: file.sha256 for file in self.files}
        asked = {name: stored.get(name) for name in sha256}
        return (self.source, self.revision) == (source, revision) and asked == dict(sha256)

    def fits(self, sizes_bytes: Mapping[str, int]) -> bool:
        """Whether the files that are there, by name, are the model's, as far as sizes can tell."""
        return all(sizes_bytes.get(file.name) == file.size_bytes for file in self.files)


@dataclass(frozen=True)
class Damage:
    """A file that is not as its manifest says.

    + path: where it is
    + sha256: what it has now, None where it has another size or can't be read
    + says: what is wrong, in one line that begins with the path
    """

    path: Path
    sha256: str | None
    says: str


class Shelf:
    """The place of one model in the store, and of the one that is to replace it."""

    def __init__(self, store: Path, model: str) -> None:
        self.store, self.model = store, model
        self.target = store / model
        self.incoming = store / ".incoming" / model
        self.files, self.old = self.incoming / "files", self.incoming / "old"
        self.links = self.incoming.with_name(f"{model}.links")
        self.progress, self._job = self.incoming / "progress.json", self.incoming / "job.json"

    @contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[int]:
        """Keeps other runs off this model; yields the lock's descriptor.

        A child that inherits the descriptor holds the lock too, so the orphan of a killed run is waited for.
        """
        if not self.store.is_dir():
            raise StoreError(f"{self.store}: there is no such folder; create it or mount its disk")
        self.incoming.mkdir(parents=True, exist_ok=True)
        path = self.incoming.with_name(f".{self.model}.lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)

    def recover(self) -> None:
        """Finishes a switch that a crash has interrupted; leaves the folder of somebody else alone."""
        if self.old.exists():
            if not self.target.exists():
                # The manifest is written last, so a successor that has one is whole.
                whole = (self.files / "manifest.json").exists()
                self._rename(self.files if whole else self.old, self.target)
            _remove(self.old)
        foreign = self.target.exists() and not (self.target / "manifest.json").exists()
        if foreign or self.target.is_symlink():
            raise StoreError(
                f"{self.target}: is in the way and not from this program (a link, or without manifest.json); "
                f"move it away or give the model another name"
            )

    def manifest(self) -> Manifest | None:
        """What stands in the store now; None if that is nothing, or not what its manifest says."""
        try:
            found = read_manifest(self.target)
        except (OSError, ValueError):
            return None
        return found if len(self.held()) == len(found.files) else None

    def held(self) -> dict[str, Path]:
        """The files of the model in the store that are as they should be, as far as is known, by their sha256."""
        try:
            there = read_manifest(self.target).files
            sizes_bytes = {path.name: path.stat().st_size for path in self.target.iterdir()}
        except (OSError, ValueError):
            return {}
        damaged = read_damage(self.target)
        good = (each for each in there if each.name not in damaged and sizes_bytes.get(each.name) == each.size_bytes)
        return {str(each.sha256): self.target / each.name for each in good}

    def stage(self, job: Mapping[str, Any]) -> None:
        """Makes room for a successor; what an earlier run has left stays only if it was for the same job."""
        try:
            same = json.loads(self._job.read_text()) == job
        except (OSError, ValueError):
            same = False
        if not same:
            _remove(self.files)
            write_json(self._job, job)
        self.files.mkdir(exist_ok=True)

    def part(self, file: ModelFile) -> Path:
        """Where a file grows until it is verified."""
        return self.files / f"{file.name}.part"

    def finished(self, file: ModelFile) -> Path:
        """Where a verified file waits for the switch."""
        return self.files / file.name

    def is_filled(self, file: ModelFile) -> bool:
        """Whether the part has its full size and no holes, which is what aria2's control file stands for."""
        part = self.part(file)
        return part.exists() and part.stat().st_size == file.size_bytes and not control_file(part).exists()

    def adopt(self, file: ModelFile, origin: Path) -> None:
        """Makes the part a hard link to a file that is there already, or nothing where that is impossible.

        The sandbox of a fetch forbids links to what belongs to others: those are in `links`.
        """
        discard(self.part(file))
        link = self.links / file.name
        with suppress(OSError):
            if not origin.stat().st_mode & stat.S_IROTH:
                return  # a copy can be read by those who serve it
            if link.exists() and link.samefile(origin):
                link.rename(self.part(file))
            else:
                os.link(origin, self.part(file))

    def missing_bytes(self, file: ModelFile) -> int:
        """How much room the rest of a file will take."""
        if self.finished(file).exists() or self.is_filled(file):
            return 0
        return max(file.size_bytes - held_bytes(self.part(file)), 0)

    def require_space(self, missing_bytes: int, reserve_mib: int) -> None:
        """Raises if the disk cannot take the missing bytes, 5 % of them and the reserve."""
        disk = os.statvfs(self.store)
        free_mib = disk.f_bavail * disk.f_frsize // MIB
        needed_mib = -(-missing_bytes * 105 // 100 // MIB) + reserve_mib
        if missing_bytes and needed_mib > free_mib:
            raise StoreError(
                f"{self.store}: lacks {needed_mib - free_mib} MiB for {self.model}: {needed_mib} MiB needed "
                f"(5 % and {reserve_mib} MiB reserve included), {free_mib} MiB free; make room there"
            )

    def clear(self) -> None:
        """Removes what is left of a successor that nobody wants any more."""
        _remove(self.files)
        _remove(self.links)
        self._job.unlink(missing_ok=True)

    def accept(self, file: ModelFile) -> None:
        """Gives a part that has been verified its name, once its bytes are on the disk."""
        sync(self.part(file))
        self._rename(self.part(file), self.finished(file))

    def seal(self, manifest: Manifest, headers: Sequence[Mapping[str, Any]]) -> None:
        """Completes the successor: nothing but its files, what their headers say, and last of all the manifest.

        + headers: of each shard, as JSON has it
        """
        names = {file.name for file in manifest.files}
        for path in self.files.iterdir():
            if path.name not in names:
                path.unlink()
        # A server that has read the damaged files is told apart by this from one that has read the new ones.
        note = self.target / ("damaged.json" if read_damage(self.target) else "mended.json")
        if note.exists():
            shutil.copyfile(note, self.files / "mended.json")
            sync(self.files / "mended.json")
        there = [{**each, "name": str(self.target / Path(each["name"]).name)} for each in headers]
        write_json(self.files / "headers.json", there)
        write_json(self.files / "tensors.json", {Path(each["name"]).name: each["tensors"] for each in there})
        write_json(self.files / "manifest.json", manifest.to_json(), indent=2)

    def switch(self) -> None:
        """Puts the sealed successor in its place; programs that have the old files open keep them."""
        if self.target.exists():
            self._rename(self.target, self.old)
        self._rename(self.files, self.target)
        _remove(self.old)

    @staticmethod
    def _rename(path: Path, to: Path) -> None:
        path.rename(to)
        sync(to.parent)
        sync(path.parent)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; raises OSError or ValueError."""
    return Manifest.from_json(json.loads((folder / "manifest.json").read_text()))


def read_damage(folder: Path) -> dict[str, str | None]:
    """What an inspection has found damaged in a model's folder: the sha256 that each of these files had then."""
    try:
        return dict(json.loads((folder / "damaged.json").read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def verify(
    folder: Path, on_bytes: Callable[[int], None] = lambda done_bytes: None, uncached: bool = False
) -> Iterator[Damage]:
    """Compares a model's files with its manifest; yields each that is not as it was.

    + on_bytes: hears how many bytes of the model are read
    + uncached: as in `files.chunks`
    """
    before_bytes = 0
    for file in read_manifest(folder).files:
        path, before = folder / file.name, before_bytes
        try:
            if path.stat().st_size != file.size_bytes:
                says = f"has {path.stat().st_size} bytes, its manifest says {file.size_bytes}"
                yield Damage(path, None, f"{path}: {says}")
            elif (found := sha256_of(path, lambda done: on_bytes(before + done), uncached)) != file.sha256:  # noqa: B023
                yield Damage(path, found, f"{path}: has sha256 {found}, its manifest says {file.sha256}")
        except OSError as error:
            yield Damage(path, None, f"{path}: {error.strerror}")
        before_bytes += file.size_bytes


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
