"""Inspections of the store: what is damaged is named, remembered, and fetched anew, and nothing else is."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from moehost import fetch, inspection, progress
from moehost.files import sha256_of
from moehost.store import read_damage
from roles.models.verification import units
from tests.fixtures.fetching import Bench
from tests.fixtures.tiny_gguf import tiny_set, write

MODEL = tiny_set("m", shards=3, seed=2)
FIRST, SECOND, THIRD = MODEL


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A store with one model of three shards, copied and not linked."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    bench = Bench(tmp_path)
    write(tmp_path / "in", MODEL)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "link", _refuse)
        assert bench.run(f"file://{tmp_path}/in/{FIRST}") == 0
    return bench


def _refuse(*_: object) -> None:
    raise OSError("another disk")


def flip(path: Path) -> None:
    """Other bytes of the same number."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def inspect(bench: Bench, *more: str) -> int:
    return inspection.main([str(bench.store), *more, "--folder", str(bench.folder)])


def test_a_whole_model(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(bench) == 0
    assert "M: as its manifest says" in capsys.readouterr().out
    assert not (bench.target / "damaged.json").exists()
    [result] = json.loads((bench.folder / "result.json").read_text())
    assert (result["model"], result["damaged"]) == ("M", [])
    assert result["bytes"] == sum(map(len, MODEL.values()))


def test_what_is_damaged_is_named_and_remembered(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    flip(bench.target / SECOND)
    (bench.target / THIRD).unlink()
    assert inspect(bench, "M") == 1
    second, third = capsys.readouterr().err.splitlines()
    assert second.startswith(f"{bench.target}/{SECOND}: has sha256 ")
    assert third.startswith(f"{bench.target}/{THIRD}: No such file")
    assert second.endswith("the next deploy fetches what is damaged anew")
    assert read_damage(bench.target) == {SECOND: sha256_of(bench.target / SECOND), THIRD: None}
    [entry] = inspection.catalogue(bench.store)
    assert entry["problem"] == f"damaged: {SECOND}, {THIRD}"


def test_only_what_is_damaged_is_brought_again(bench: Bench) -> None:
    flip(bench.target / SECOND)
    inspect(bench)
    inodes = {name: (bench.target / name).stat().st_ino for name in MODEL}
    good = {name: bench.target / name for name in (FIRST, THIRD)}
    held = fetch.Shelf(bench.store, "M").held()
    assert set(held.values()) == set(good.values())
    # As from a hub: no origin on this machine, so the good ones are those of the store.
    (bench.folder / "in" / SECOND).rename(bench.folder / SECOND)
    write(bench.folder / "in", {SECOND: MODEL[SECOND]})
    for name in good:
        (bench.folder / "in" / name).unlink()
        os.link(good[name], bench.folder / "in" / name)
    assert bench.run(f"file://{bench.folder}/in/{FIRST}") == 0
    assert {name: (bench.target / name).read_bytes() for name in MODEL} == MODEL
    assert [inodes[name] == (bench.target / name).stat().st_ino for name in MODEL] == [True, False, True]
    assert not (bench.target / "damaged.json").exists()
    assert SECOND in json.loads((bench.target / "mended.json").read_text())["files"]
    assert inspect(bench) == 0


def test_what_was_mended_stays_known(bench: Bench) -> None:
    """Or a server would be restarted without a need, when its model is put together anew for another reason."""
    flip(bench.target / SECOND)
    inspect(bench)
    source = f"file://{bench.folder}/in/{FIRST}"
    assert bench.run(source) == 0
    note = (bench.target / "mended.json").read_text()
    (bench.target / "manifest.json").write_text("{")
    assert bench.run(source) == 0
    assert (bench.target / "mended.json").read_text() == note
    assert inspect(bench) == 0


def test_an_origin_that_is_the_damaged_file_itself_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    write(tmp_path / "in", MODEL)
    assert bench.run(f"file://{tmp_path}/in/{FIRST}") == 0
    flip(bench.target / SECOND)
    assert inspect(bench) == 1
    assert bench.run(f"file://{tmp_path}/in/{FIRST}") == 1
    assert f"{SECOND}: is the damaged file itself" in capsys.readouterr().err
    (tmp_path / "in" / SECOND).unlink()
    write(tmp_path / "in", {SECOND: MODEL[SECOND]})
    assert bench.run(f"file://{tmp_path}/in/{FIRST}") == 0
    assert inspect(bench) == 0


def test_damage_that_is_gone_is_forgotten(bench: Bench) -> None:
    good = (bench.target / FIRST).read_bytes()
    flip(bench.target / FIRST)
    assert inspect(bench) == 1
    (bench.target / FIRST).write_bytes(good)
    assert inspect(bench) == 0
    assert not (bench.target / "damaged.json").exists()


def test_a_manifest_that_is_cut_off(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    (bench.target / "manifest.json").write_text('{"model": "M", "fi')
    assert inspect(bench) == 1
    assert "manifest.json: can't be read" in capsys.readouterr().err
    assert "manifest.json can't be read" in inspection.catalogue(bench.store)[0]["problem"]


def test_a_model_that_is_replaced_meanwhile_is_read_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, rounds = inspection.verify, []

    def verify(folder: Path, *arguments: object, **more: object) -> object:
        found = list(real(folder, uncached=True))
        if not rounds:
            flip(folder / FIRST)
            found = list(real(folder))
            folder.rename(bench.folder / "old")
            write(folder, MODEL)
            for name in ("headers.json", "manifest.json", "tensors.json"):
                (folder / name).write_bytes((bench.folder / "old" / name).read_bytes())
        rounds.append(len(found))
        return found

    monkeypatch.setattr(inspection, "verify", verify)
    assert inspect(bench) == 0
    assert rounds == [1, 0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"seen": "x"}'])
def test_a_note_that_can_not_be_read_is_none(bench: Bench, text: str) -> None:
    (bench.target / "damaged.json").write_text(text)
    assert read_damage(bench.target) == {}


def test_a_model_that_is_not_there(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(bench, "nosuch") == 2
    assert "nosuch: is no model; there are: M" in capsys.readouterr().err


def test_an_inspection_keeps_nothing_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(32 << 20))
    os.sync()

    def resident() -> int:
        done = subprocess.run(
            ["fincore", "--bytes", "--noheadings", "--output", "RES", path], capture_output=True, text=True
        )
        return int(done.stdout)

    if tmp_path.stat().st_dev == Path("/dev/shm").stat().st_dev or not resident():
        pytest.skip("the file system of the tests keeps no page cache")
    sha256_of(path, uncached=True)
    assert resident() < 4 << 20
    sha256_of(path)
    assert resident() == 32 << 20


def test_the_units(tmp_path: Path) -> None:
    texts = {Path(path).name: text for path, text in units("/srv/models", "monthly").items()}
    assert set(texts) == {"moehost-verify.service", "moehost-verify.timer"}
    assert "OnCalendar=monthly" in texts["moehost-verify.timer"]
    for name, text in texts.items():
        (tmp_path / name).write_text(re.sub("/usr/bin/python3", "/bin/true", text))
    for name in texts:
        verify = subprocess.run(["systemd-analyze", "verify", tmp_path / name], capture_output=True, text=True)
        assert [line for line in verify.stderr.splitlines() if name in line] == []
    words = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", tmp_path / "moehost-verify.service"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:]


def test_a_progress_that_can_not_be_written_ends_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk may be full; the bytes of a model are checked, and brought, all the same."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(progress, "write_json", full)
    assert inspect(bench) == 0
    flip(bench.folder / "in" / FIRST)
    assert bench.run(f"file://{bench.folder}/in/{FIRST}") == 0
    assert (bench.target / FIRST).read_bytes() == (bench.folder / "in" / FIRST).read_bytes()
