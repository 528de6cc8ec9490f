"""The store: local models come in, bad ones do not, and no crash costs the model that stands."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moehost import fetch, gguf
from moehost.job import Job
from moehost.store import Manifest, Shelf, read_manifest
from tests.fixtures.fetching import Bench
from tests.fixtures.tiny_gguf import gguf_bytes, tiny_set, write

OLD = tiny_set("old", seed=1)
NEW = tiny_set("new", shards=3, seed=2)
FIRST, SECOND, THIRD = NEW


@pytest.fixture(autouse=True)
def _nobody_cuts_the_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to be on the disk, except where a test looks for that."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def offered(bench: Bench) -> str:
    """The source of NEW, in a folder on this machine, named by its second shard."""
    write(bench.folder / "in", NEW)
    return f"file://{bench.folder}/in/{SECOND}"


@pytest.fixture
def standing(bench: Bench) -> Bench:
    """The store with OLD standing in it."""
    [path] = write(bench.folder / "old", OLD)
    assert bench.run(f"file://{path}") == 0
    return bench


def sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def refuse_link(*_: object) -> None:
    """What os.link does when the origin is on another disk."""
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_local_model_is_linked(bench: Bench, offered: str) -> None:
    assert bench.run(offered) == 0
    assert bench.holds(NEW)
    assert (bench.target / FIRST).samefile(bench.folder / "in" / FIRST)
    manifest = read_manifest(bench.target)
    assert (manifest.model, manifest.source, manifest.revision) == ("M", offered, None)
    assert (manifest.architecture, manifest.tensors) == ("tiny", 3)
    assert {file.name: file.sha256 for file in manifest.files} == {n: sha256(d) for n, d in NEW.items()}
    tensors = json.loads((bench.target / "tensors.json").read_text())
    assert tensors[SECOND] == [["blk.1.weight", [1000], 0, 0, 4000]]
    # What a node would read again is what was kept.
    kept = [gguf.Header.from_json(each) for each in json.loads((bench.target / "headers.json").read_text())]
    assert tuple(kept) == gguf.read_model(bench.target / FIRST).headers
    assert bench.progress()["phase"] == "done"
    assert sorted(path.name for path in bench.staging.iterdir()) == ["progress.json"]


def test_local_model_on_another_disk_is_copied(bench: Bench, offered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse_link)
    assert bench.run(offered) == 0
    assert bench.holds(NEW)
    assert not (bench.target / FIRST).samefile(bench.folder / "in" / FIRST)
    before = (bench.target / FIRST).stat().st_ino
    assert bench.run(offered) == 0
    assert (bench.target / FIRST).stat().st_ino == before  # known again by its time, and not copied twice


def test_a_model_that_root_has_linked_into_the_store(
    bench: Bench, offered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the sandbox on a node, where the store is a mount of its own."""
    links = bench.staging.with_name(f"{bench.staging.name}.links")
    links.mkdir(parents=True)
    for name in NEW:
        (links / name).hardlink_to(bench.folder / "in" / name)
    (links / THIRD).unlink()
    (links / THIRD).write_bytes(b"something else")
    monkeypatch.setattr(os, "link", refuse_link)
    assert bench.run(offered) == 0
    assert bench.holds(NEW)
    same = {name: (bench.target / name).samefile(bench.folder / "in" / name) for name in NEW}
    assert same == {FIRST: True, SECOND: True, THIRD: False}
    assert not links.exists()


def test_what_only_its_owner_reads_is_copied(bench: Bench, offered: str) -> None:
    (bench.folder / "in" / FIRST).chmod(0o600)
    assert bench.run(offered) == 0
    assert bench.holds(NEW)
    assert (bench.target / FIRST).stat().st_mode & 0o777 == 0o644
    assert (bench.target / SECOND).samefile(bench.folder / "in" / SECOND)


def test_upload_is_moved_and_recorded_by_its_first_name(bench: Bench, offered: str) -> None:
    assert bench.run(offered, uploaded=True, recorded_source=f"file:models/{FIRST}") == 0
    assert bench.holds(NEW)
    assert list((bench.folder / "in").iterdir()) == []
    assert read_manifest(bench.target).source == f"file:models/{FIRST}"


def test_second_run_changes_nothing(bench: Bench, offered: str) -> None:
    assert bench.run(offered) == 0
    before = bench.target.stat()
    assert bench.run(offered) == 0
    write(bench.folder / "elsewhere", NEW)
    for name in NEW:
        (bench.folder / "in" / name).unlink()  # an origin that was cleared away is no reason either
    assert bench.run(offered, sha256={FIRST: sha256(NEW[FIRST])}) == 0
    assert bench.target.stat() == before
    assert bench.progress()["done_bytes"] == sum(map(len, NEW.values()))


@pytest.mark.parametrize("damage", ["origin", "store"])
def test_changed_files_are_brought_again(bench: Bench, offered: str, damage: str) -> None:
    assert bench.run(offered) == 0
    changed = tiny_set("new", shards=3, seed=3)
    if damage == "origin":
        for path in (bench.folder / "in").iterdir():
            path.unlink()
        write(bench.folder / "in", changed)
    else:
        (bench.target / THIRD).unlink()
    assert bench.run(offered) == 0
    assert bench.holds(changed if damage == "origin" else NEW)


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What would show that a folder was touched."""
    found = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found.items()}


def mixed(**replaced: bytes | None) -> Callable[[Path], None]:
    """Damages a folder that holds NEW; keys are first, second and third, None takes the file away."""

    def damage(folder: Path) -> None:
        for shard, data in replaced.items():
            path = folder / {"first": FIRST, "second": SECOND, "third": THIRD}[shard]
            if data is None:
                path.unlink()
            else:
                path.write_bytes(data)

    return damage


@pytest.mark.parametrize(
    ("damage", "keys", "reason"),
    [
        (mixed(), {"sha256": {THIRD: "0" * 64}}, f"{THIRD}: its sha256 is {sha256(NEW[THIRD])}, not 000"),
        (mixed(second=None), {}, f"{SECOND}: No such file or directory"),
        (mixed(second=NEW[THIRD]), {}, "does not hold shard 2 of 3"),
        (mixed(first=tiny_set("x", 2)["x-00001-of-00002.gguf"]), {}, "has 2 shards by its header and 3 by"),
        (mixed(third=gguf_bytes({"blk.0.weight": 9}, (2, 3, 3))), {}, "come with 3 tensors"),
        (mixed(third=b"<html>404 Not Found</html>"), {}, f"{THIRD}: does not begin with GGUF"),
        (mixed(third=NEW[THIRD][:-100]), {}, "reaches beyond the file's end"),
        (mixed(third=b""), {}, f"{THIRD}: has a header that reaches beyond 0 bytes"),
    ],
    ids=["checksum", "missing", "mixed up", "extra", "twice", "no gguf", "truncated", "empty"],
)
def test_bad_model_is_refused_and_the_old_one_stands(
    standing: Bench,
    offered: str,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    keys: dict[str, Any],
    reason: str,
) -> None:
    before = state(standing.target)
    damage(standing.folder / "in")
    assert standing.run(offered, **keys) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and reason in error and ";" in error
    assert state(standing.target) == before
    assert standing.holds(OLD)
    progress = standing.progress()
    assert progress["phase"] == "failed" and f"error: {progress['error']}" == error
    write(standing.folder / "in", NEW)
    assert standing.run(offered) == 0
    assert standing.holds(NEW)


def test_full_disk_is_noticed_before_the_first_byte(
    standing: Bench, offered: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size_bytes = sum(map(len, NEW.values()))
    free = SimpleNamespace(f_bavail=100 << 8, f_frsize=4096)  # 100 MiB
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    monkeypatch.setattr(os, "link", refuse_link)
    assert standing.run(offered, reserve_mib=500) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    needed_mib = -(-size_bytes * 105 // 100 // (1 << 20)) + 500
    assert f"{standing.store}: lacks {needed_mib - 100} MiB for M: {needed_mib} MiB needed" in error
    assert not list((standing.staging / "files").iterdir())
    assert standing.holds(OLD)
    assert standing.run(offered, reserve_mib=99) == 0
    assert standing.holds(NEW)


def test_links_need_no_room(bench: Bench, offered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=4096))
    assert bench.run(offered, reserve_mib=500) == 0
    assert bench.holds(NEW)


def test_folder_of_somebody_else_is_left_alone(
    bench: Bench, offered: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(bench.target, {"mine.gguf": b"mine"})
    assert bench.run(offered) == 1
    assert "not from this program (a link, or without manifest.json); move it away" in capsys.readouterr().err
    assert [path.name for path in bench.target.iterdir()] == ["mine.gguf"]
    bench.target.rename(bench.folder / "elsewhere")
    bench.target.symlink_to(bench.folder / "elsewhere")
    assert bench.run(offered) == 1
    assert bench.target.is_symlink()


def test_store_that_is_not_mounted(bench: Bench, offered: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(offered, store="/nonexistent") == 1
    assert "/nonexistent: there is no such folder; create it or mount its disk" in capsys.readouterr().err


def test_bytes_are_on_the_disk_before_they_get_their_names(
    bench: Bench, offered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, str]] = []
    real_rename = os.rename

    def rename(path: Path, to: Path) -> None:
        steps.append(("rename", Path(to).name))
        real_rename(path, to)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append(("sync", Path(f"/proc/self/fd/{fd}").readlink().name)))
    assert bench.run(offered) == 0
    assert bench.holds(NEW)
    for name in NEW:
        at = steps.index(("rename", name))
        assert steps[at - 1] == ("sync", f"{name}.part")
        assert steps[at + 1] == ("sync", "files")
    assert steps[-5:] == [
        ("sync", "manifest.json.new"),
        ("sync", "files"),
        ("rename", "M"),
        ("sync", "models"),
        ("sync", "M"),
    ]


class Crash(BaseException):
    """Stands for SIGKILL: nothing catches it, and nothing works any more after it."""


STEPS = ("rename", "replace", "unlink", "rmdir", "link", "fsync", "mkdir")


def crash_before(step: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes the given step fail that changes the disk, and every later one; lists the ones that were made."""
    made: list[str] = []

    def guarded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keys: Any) -> Any:
            if len(made) >= step:
                raise Crash
            made.append(name)
            return real(*arguments, **keys)

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, guarded(name, getattr(os, name)))
    return made


def test_crash_before_any_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tiny_set("new", shards=2)
    absent = 0
    for step in itertools.count():
        (tmp_path / str(step)).mkdir()
        bench = Bench(tmp_path / str(step))
        [old] = write(bench.folder / "old", OLD)
        write(bench.folder / "in", new)
        assert bench.run(f"file://{old}") == 0
        source = f"file://{bench.folder}/in/{next(iter(new))}"
        with pytest.MonkeyPatch.context() as patch:
            try:
                made = crash_before(step, patch)
                bench.run(source, uploaded=True)
                crashed = False
            except Crash:
                crashed = True
        if bench.target.exists():
            assert bench.holds(OLD) or bench.holds(new), f"after {made}"
        else:
            absent += 1
            assert sorted(p.name for p in (bench.staging / "old").iterdir()) == [
                "headers.json",
                "manifest.json",
                *OLD,
                "tensors.json",
            ]
        assert bench.run(source, uploaded=True) == 0, capsys.readouterr().err
        assert bench.holds(new), f"after {made}"
        assert not list((bench.folder / "in").iterdir())
        assert [path.name for path in bench.staging.iterdir()] == ["progress.json"]
        if not crashed:
            break
    assert step > 30
    assert 1 <= absent <= 3  # between the two renames, and nowhere else


def test_crash_between_the_renames_is_mended_for_another_job(standing: Bench, offered: str) -> None:
    shelf = Shelf(standing.store, "M")
    shelf.stage({"job": "somebody else's"})
    write(shelf.files, NEW)
    standing.target.rename(shelf.old)  # a crash came here, before the successor was sealed
    assert standing.run(f"file://{standing.folder}/old/{next(iter(OLD))}") == 0
    assert standing.holds(OLD)
    assert not shelf.files.exists()


def test_open_files_of_the_predecessor_stay(standing: Bench, offered: str) -> None:
    with (standing.target / next(iter(OLD))).open("rb") as served:
        assert standing.run(offered) == 0
        assert served.read() == next(iter(OLD.values()))


def test_verify(bench: Bench, offered: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(offered) == 0
    assert fetch.main(["--verify", str(bench.target)]) == 0
    assert capsys.readouterr().out == ""
    flipped = bytearray(NEW[FIRST])
    flipped[-1] ^= 1
    (bench.target / FIRST).write_bytes(flipped)
    (bench.target / SECOND).write_bytes(NEW[SECOND] + b"more")
    (bench.target / THIRD).unlink()
    assert fetch.main(["--verify", str(bench.target)]) == 1
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == (f"{bench.target}/{FIRST}: has sha256 {sha256(flipped)}, its manifest says {sha256(NEW[FIRST])}")
    assert second.startswith(f"{bench.target}/{SECOND}: has {len(NEW[SECOND]) + 4} bytes")
    assert third == f"{bench.target}/{THIRD}: No such file or directory"


@pytest.mark.parametrize("text", [None, "{", "[]", '{"files": 1}', '{"model": "M", "files": []}'])
def test_verify_without_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    assert fetch.main(["--verify", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}: has no manifest") and line.endswith("name the folder of a model")


def test_manifest_answers(bench: Bench, offered: str) -> None:
    assert bench.run(offered) == 0
    manifest = read_manifest(bench.target)
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    assert manifest.fits({name: len(data) for name, data in NEW.items()} | {"tensors.json": 1})
    assert not manifest.fits({name: len(data) for name, data in NEW.items()} | {FIRST: 1})
    assert not manifest.fits({FIRST: len(NEW[FIRST])})
    assert manifest.answers(offered, None, {})
    assert manifest.answers(offered, None, {FIRST: sha256(NEW[FIRST])})
    assert not manifest.answers(offered, None, {FIRST: "0" * 64})
    assert not manifest.answers(offered, None, {"other.gguf": "0" * 64})
    assert not manifest.answers(offered, "0" * 40, {})
    assert not manifest.answers("file:///other.gguf", None, {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "it is no object"),
        ('{"model": "M", "store": "/s"}', "missing 1 required positional argument: 'source'"),
        ('{"model": "M", "store": "/s", "source": "x", "conections": 1}', "'conections'"),
        (
            '{"model": "M", "store": "/s", "source": "file:///m.gguf", "sha256": {"m.gguf": 1}}',
            "64 lower-case",
        ),
        ('{"model": "M", "store": "/s", "source": "file:///m.gguf", "sha256": []}', "wrong type"),
        ('{"model": "M", "store": 1, "source": "file:///m.gguf"}', "store: 1 is of the wrong type"),
        ('{"model": "../M", "store": "/s", "source": "file:///m.gguf"}', "model name '../M'"),
        ('{"model": "M", "store": "/s", "source": "file:m.gguf"}', "is relative; upload"),
        ('{"model": "M", "store": "/s", "source": "https://host/m.gguf"}', "no sha256 for m.gguf"),
        ('{"model": "M", "store": "/s", "source": "hf://o/r/m.gguf@main"}', "branches and tags"),
        ('{"model": "M", "store": "/s", "source": "file:///m.gguf", "connections": 17}', "1 to 16"),
        ('{"model": "M", "store": "/s", "source": "file:///m.gguf", "endpoint": "http://hub/"}', "encrypted"),
    ],
)
def test_bad_job(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, reason: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(text)
    assert fetch.main([str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ") and reason in line


def test_job_is_the_inverse_of_its_text() -> None:
    job = Job("M", "/s", "file:///m.gguf", sha256={"m.gguf": "a" * 64}, uploaded=True)
    assert Job.parse(job.to_json()) == job


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main([str(tmp_path / "none.json")]) == 2
    assert "none.json: No such file or directory" in capsys.readouterr().err
    for arguments, status in (["--help"], 0), ([], 2), (["job.json", "--verify", "x"], 2):
        with pytest.raises(SystemExit) as ended:
            fetch.main(arguments)
        assert ended.value.code == status
    captured = capsys.readouterr()
    example = re.search(r"{.*}", captured.out, re.DOTALL)
    assert example is not None
    Job.parse(example[0].replace("<40 hex digits of the commit>", "a" * 40))  # what the help shows is a job
