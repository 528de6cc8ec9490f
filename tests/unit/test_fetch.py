"""Models over the network, from hosts and an imitated hub on loopback: slow, broken, killed and resumed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moehost import download
from moehost.files import control_file, held_bytes
from moehost.store import Shelf
from tests.fixtures.fetching import Bench
from tests.fixtures.http_server import FileHost, Hub
from tests.fixtures.tiny_gguf import tiny_set, write
from tests.fixtures.waiting import until

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"
OLD = tiny_set("old", seed=1)
MODEL = tiny_set("big", shards=3, floats=2_200_000, seed=2)  # 9 MB a shard, so that each is fetched in ranges
FIRST, SECOND, THIRD = MODEL
MODEL_BYTES = sum(map(len, MODEL.values()))
SHA256 = {name: hashlib.sha256(data).hexdigest() for name, data in MODEL.items()}

pytestmark = pytest.mark.skipif(shutil.which("aria2c") is None, reason="aria2 is not installed")


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback needs no proxy, and nobody cuts the power, so nothing has to be on the disk."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Tries follow each other at once; lists the pauses in seconds that would be made."""
    pauses_s: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses_s.append)
    return pauses_s


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A store in which OLD stands."""
    bench = Bench(tmp_path)
    [path] = write(tmp_path / "old", OLD)
    assert bench.run(f"file://{path}") == 0
    return bench


@pytest.fixture
def host() -> Iterator[FileHost]:
    """A web host with MODEL under /m/."""
    with FileHost({f"/m/{name}": data for name, data in MODEL.items()}) as host:
        yield host


@pytest.fixture
def storage() -> Iterator[FileHost]:
    with FileHost({}) as storage:
        yield storage


@pytest.fixture
def hub(storage: FileHost) -> Iterator[Hub]:
    """A hub with MODEL in the folder IQ4 of a private repository, and its storage on another port."""
    files = {f"IQ4/{name}": data for name, data in MODEL.items()} | {"README.md": b"read me"}
    with Hub(storage, files, COMMIT, TOKEN) as hub:
        yield hub


def hub_job(bench: Bench, hub: Hub, path: str = "/IQ4", **keys: Any) -> dict[str, Any]:
    """The job for the model on the hub, with the token in its file."""
    (bench.folder / "token").write_text(f"{TOKEN}\n")
    job = {
        "source": f"hf://OWNER/REPO{path}",
        "revision": hub.revision,
        "endpoint": hub.url,
        "token_file": str(bench.folder / "token"),
    }
    return job | keys


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_web_host(bench: Bench, host: FileHost) -> None:
    assert bench.run(f"{host.url}/m/{SECOND}", sha256=SHA256) == 0
    assert bench.holds(MODEL)
    ranges = {r.headers.get("Range") for r in host.requests if r.path.endswith(FIRST)}
    assert len(ranges - {None, "bytes=0-0"}) >= 1  # besides the first connection, which asks for all
    asked = len(host.requests)
    assert bench.run(f"{host.url}/m/{SECOND}", sha256=SHA256) == 0
    assert len(host.requests) == asked


def test_web_host_without_ranges(bench: Bench, host: FileHost) -> None:
    host.ranges = False
    assert bench.run(f"{host.url}/m/{FIRST}", sha256=SHA256) == 0
    assert bench.holds(MODEL)


def test_broken_connections_cost_what_was_on_its_way(bench: Bench, host: FileHost) -> None:
    host.break_off = [1_000_000, 2_000_000]
    assert bench.run(f"{host.url}/m/{FIRST}", sha256=SHA256) == 0
    assert bench.holds(MODEL)


@pytest.mark.parametrize("path", ["/IQ4", f"/IQ4/{SECOND}"])
def test_hub(bench: Bench, hub: Hub, path: str) -> None:
    hub.page_entries = 2
    job = hub_job(bench, hub, path)
    assert bench.run(**job) == 0
    assert bench.holds(MODEL)
    manifest = json.loads((bench.target / "manifest.json").read_text())
    assert (manifest["source"], manifest["revision"]) == (f"hf://OWNER/REPO{path}", COMMIT)
    asked = len(hub.requests)
    assert bench.run(**job) == 0
    assert len(hub.requests) == asked


def test_public_hub_and_a_repository_that_was_renamed(bench: Bench, hub: Hub) -> None:
    hub.token = None
    assert bench.run(f"hf://OWNER/OLD/IQ4@{COMMIT}", endpoint=hub.url) == 0
    assert bench.holds(MODEL)


def test_same_files_at_another_commit_are_not_fetched_again(bench: Bench, hub: Hub) -> None:
    assert bench.run(**hub_job(bench, hub)) == 0
    sent_bytes, hub.revision = hub.storage.sent_bytes, "f" * 40
    changed = MODEL | {THIRD: tiny_set("big", 3, 1000)[THIRD]}
    hub.files = {f"IQ4/{name}": data for name, data in changed.items()}
    assert bench.run(**hub_job(bench, hub)) == 0
    assert bench.holds(changed)
    assert hub.storage.sent_bytes - sent_bytes < 10_000


def test_node_needs_only_the_copied_modules(bench: Bench, hub: Hub) -> None:
    with bench.start(**hub_job(bench, hub)) as run:
        assert run.wait() == 0, run.stderr
    assert bench.holds(MODEL)


@pytest.fixture
def spied_aria2(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What every aria2c was started with: its arguments and its environment."""
    seen, shim = bench.folder / "seen", bench.folder / "bin" / "aria2c"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\n{{ echo "$@"; env; }} >> {seen}\nexec {shutil.which("aria2c")} "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    return seen


def test_token_reaches_the_hub_alone(
    bench: Bench, hub: Hub, spied_aria2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.run(**hub_job(bench, hub)) == 0
    assert {request.headers.get("Authorization") for request in hub.requests} == {f"Bearer {TOKEN}"}
    assert hub.storage.requests
    assert TOKEN not in repr(hub.storage.requests)
    written = b"".join(path.read_bytes() for path in bench.store.rglob("*.json"))
    for secret in TOKEN, "secret-":  # the latter is how signatures begin
        assert secret not in spied_aria2.read_text()
        assert secret.encode() not in written
        assert secret not in capsys.readouterr().err


def test_token_is_not_taken_along_when_the_list_redirects(bench: Bench, hub: Hub) -> None:
    hub.renamed_from = "OWNER/REPO"
    with FileHost({}) as other:
        hub.redirect_to = other.url
        assert bench.run(**hub_job(bench, hub)) == 1
        assert other.requests and TOKEN not in repr(other.requests)


def test_list_that_continues_elsewhere_is_refused(bench: Bench, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    with FileHost({}) as other:
        hub.page_entries, hub.next_page_on = 1, other.url
        assert bench.run(**hub_job(bench, hub)) == 1
        assert not other.requests
    assert "continues its list on another host" in last_line(capsys)


def test_hub_that_sends_files_itself(
    bench: Bench, hub: Hub, spied_aria2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.direct = True
    assert bench.run(**hub_job(bench, hub)) == 1
    assert "use a hub that redirects" in last_line(capsys)
    assert not spied_aria2.exists()
    hub.token = None  # a public repository: the file comes without the token, even though there is one
    assert bench.run(**hub_job(bench, hub)) == 0
    assert bench.holds(MODEL)
    assert TOKEN not in spied_aria2.read_text()


def test_signed_address_that_expires_is_resolved_anew(bench: Bench, hub: Hub, without_pauses: list[float]) -> None:
    hub.storage.break_off = [3_000_000]
    assert bench.run(**hub_job(bench, hub)) == 0
    assert bench.holds(MODEL)
    assert hub.signatures == len(MODEL) + 1


def hub_without(*names: str) -> Any:
    def damage(hub: Hub) -> None:
        for name in names:
            del hub.files[f"IQ4/{name}"]

    return damage


def hub_with(name: str, data: bytes) -> Any:
    return lambda hub: hub.files.update({f"IQ4/{name}": data})


def hub_set(**values: Any) -> Any:
    def damage(hub: Hub) -> None:
        for name, value in values.items():
            setattr(hub, name, value)

    return damage


@pytest.mark.parametrize(
    ("damage", "keys", "reason"),
    [
        (hub_without(SECOND), {}, f"the folder lacks {SECOND}"),
        (hub_with("other.gguf", b"x"), {}, "the folder holds 2 models"),
        (hub_with(FIRST, b"<html>" + bytes(100)), {}, "does not begin with GGUF"),
        (hub_with(THIRD, MODEL[THIRD][:-64]), {}, "reaches beyond the file's end"),
        (hub_with(THIRD, tiny_set("x", 2)["x-00002-of-00002.gguf"]), {}, "does not hold shard 3 of 3"),
        (hub_set(), {"sha256": {FIRST: "0" * 64}}, f"the source has {SHA256[FIRST]}"),
        (hub_set(), {"sha256": {"x.gguf": "0" * 64}}, "the model has no such file"),
        (hub_set(), {"token_file": None}, "answers 401 for /api/models/OWNER/REPO/tree/"),
        (hub_set(token="another"), {}, "accept its terms with the token's account"),
        (hub_set(revision="f" * 40), {"revision": COMMIT}, "answers 404"),
        (hub_set(), {"token_file": "/nonexistent"}, "/nonexistent: No such file"),
        (hub_set(), {"token_file": "/dev/null"}, "/dev/null: does not hold one token"),
        (hub_set(), {"endpoint": "http://127.0.0.1:9"}, "http://127.0.0.1:9: gives no answer"),
    ],
)
def test_bad_hub_models_leave_the_old_one(
    bench: Bench, hub: Hub, capsys: pytest.CaptureFixture[str], damage: Any, keys: dict[str, Any], reason: str
) -> None:
    damage(hub)
    assert bench.run(**hub_job(bench, hub) | keys) == 1
    error = last_line(capsys)
    assert error.startswith("error: ") and reason in error and TOKEN not in error
    assert bench.holds(OLD)
    assert bench.progress()["phase"] == "failed"


def test_wrong_bytes_are_refused_after_one_try(
    bench: Bench, host: FileHost, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = SHA256 | {SECOND: "0" * 64}
    assert bench.run(f"{host.url}/m/{FIRST}", sha256=wrong) == 1
    assert f"{SECOND}: its sha256 is {SHA256[SECOND]}, not 000" in last_line(capsys)
    assert not Shelf(bench.store, "M").files.joinpath(f"{SECOND}.part").exists()
    assert not [request for request in host.requests if request.path.endswith(THIRD)][1:]  # but for its length
    assert bench.holds(OLD)


def test_host_that_lacks_a_shard(bench: Bench, host: FileHost, capsys: pytest.CaptureFixture[str]) -> None:
    del host.files[f"/m/{THIRD}"]
    assert bench.run(f"{host.url}/m/{FIRST}", sha256=SHA256) == 1
    assert f"answers 404 for /m/{THIRD}; correct the source" in last_line(capsys)


def test_host_that_never_gets_on(
    bench: Bench,
    host: FileHost,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    without_pauses: list[float],
) -> None:
    monkeypatch.setattr(download.Downloader, "_aria2", lambda *_: 22)
    assert bench.run(f"{host.url}/m/{FIRST}", sha256=SHA256) == 1
    assert f"{FIRST}: {host.url}: the host refused, or" in last_line(capsys)
    assert without_pauses == [2, 4, 8, 16, 30]


def test_node_without_aria2(
    bench: Bench, host: FileHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert bench.run(f"{host.url}/m/{FIRST}", sha256=SHA256) == 1
    assert "aria2c: is not installed; install the package aria2" in last_line(capsys)


@pytest.fixture
def small_disk(bench: Bench) -> Iterator[Path]:
    """A store on a disk of 12 MiB, where MODEL has no room and its first shard just has."""
    folder = bench.folder / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk(
    bench: Bench,
    host: FileHost,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job: dict[str, Any] = {"source": f"{host.url}/m/{FIRST}", "sha256": SHA256, "store": str(small_disk)}
    assert bench.run(**job) == 1
    assert re.search(f"{small_disk}: lacks 1[56] MiB for M: 27 MiB needed", last_line(capsys))
    assert host.sent_bytes <= len(MODEL)  # a byte for each length
    monkeypatch.setattr(Shelf, "require_space", lambda *_: None)  # now it fills up on the way
    assert bench.run(**job) == 1
    assert f"{SECOND}.part: the disk is full; mend it and run again" in last_line(capsys)


@pytest.mark.slow
def test_progress(bench: Bench, host: FileHost) -> None:
    host.rate_bytes_s = 2e6
    with bench.start(f"{host.url}/m/{FIRST}", sha256=SHA256) as run:
        until(lambda: bench.progress()["total_bytes"] == MODEL_BYTES, 10)
        until(lambda: bench.progress()["rate_bytes_s"] > 0, 10)
        early = bench.progress()
        until(lambda: bench.progress()["done_bytes"] > early["done_bytes"], 10)
        later = bench.progress()
        host.rate_bytes_s = None
        assert run.wait() == 0
    assert (later["phase"], later["error"]) == ("download", None)
    assert 1e6 < later["rate_bytes_s"] < 3e6
    assert 4 < later["eta_s"] < 16
    assert bench.progress() == {
        "phase": "done",
        "done_bytes": MODEL_BYTES,
        "total_bytes": MODEL_BYTES,
        "rate_bytes_s": 0,
        "eta_s": None,
        "error": None,
    }


def test_two_runs_at_once_share_one_download(bench: Bench, host: FileHost) -> None:
    host.rate_bytes_s = 12e6
    with bench.start(f"{host.url}/m/{FIRST}", sha256=SHA256) as first:
        until(lambda: host.sent_bytes > 1_000_000, 10)
        with bench.start(f"{host.url}/m/{FIRST}", sha256=SHA256) as second:
            assert second.stderr is not None
            assert second.stderr.readline() == "M: waiting for another run that is at work on it\n"
            host.rate_bytes_s = None
            assert (first.wait(), second.wait()) == (0, 0)
            assert second.stderr.read() == ""
    assert bench.holds(MODEL)
    assert host.sent_bytes < MODEL_BYTES * 1.5


def test_interrupt(bench: Bench, host: FileHost) -> None:
    host.rate_bytes_s = 4e6
    with bench.start(f"{host.url}/m/{FIRST}", sha256=SHA256) as run:
        until(lambda: host.sent_bytes > 1_000_000, 10)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait() == 130
        assert run.stderr is not None
        assert run.stderr.read() == "error: interrupted; run again to continue\n"
    assert bench.holds(OLD)


@pytest.mark.slow
def test_killed_at_random_moments(bench: Bench, host: FileHost) -> None:
    """A kill may cost a second's bytes, those that aria2 had not noted yet; files that are done cost none."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    host.rate_bytes_s = 12e6
    kills, done = 0, set[str]()
    for until_kill_s in [chance.uniform(0.1, 1.5) for _ in range(4)] + [None]:
        asked = len(host.requests)
        with bench.start(f"{host.url}/m/{SECOND}", sha256=SHA256) as run:
            try:
                status = run.wait(until_kill_s)
            except subprocess.TimeoutExpired:
                kills += 1
                # At times the whole group, at times only the program, whose aria2 then must end by itself.
                chance.choice([os.killpg, os.kill])(run.pid, signal.SIGKILL)
                status = run.wait()
        whole = bench.holds(MODEL) or (status != 0 and bench.holds(OLD))
        assert whole or (bench.staging / "old").exists(), f"seed {seed}"  # the latter: between the renames
        for name in done:
            fetched = [r for r in host.requests[asked:] if r.path.endswith(name)]
            assert len(fetched) <= 1, f"seed {seed}: {name} was done"  # its length may be asked for
        done = {name for name in MODEL if (bench.staging / "files" / name).exists()}
    assert bench.holds(MODEL) and kills >= 1, f"seed {seed}"
    assert host.sent_bytes <= MODEL_BYTES + kills * 1.2 * host.rate_bytes_s, f"seed {seed}"


def killed_in_the_second_shard(bench: Bench, host: FileHost) -> Path:
    """Leaves about half of the second shard and its control file."""
    part = bench.staging / "files" / f"{SECOND}.part"
    host.rate_bytes_s, host.slow = 4e6, SECOND
    with bench.start(f"{host.url}/m/{FIRST}", sha256=SHA256) as run:
        # Once a second aria2 writes what it has, and then notes that it is there.
        until(lambda: held_bytes(part) > 1_000_000, 10)
        until(lambda: control_file(part).stat().st_mtime_ns >= part.stat().st_mtime_ns, 10)
        os.killpg(run.pid, signal.SIGKILL)
    assert held_bytes(part) < len(MODEL[SECOND]) - 1_000_000
    host.rate_bytes_s, host.slow = None, ""
    return part


@pytest.mark.slow
def test_part_is_resumed_and_not_begun_again(bench: Bench, host: FileHost) -> None:
    part = killed_in_the_second_shard(bench, host)
    missing_bytes = len(MODEL[SECOND]) - held_bytes(part) + len(MODEL[THIRD])
    host.rate_bytes_s = 40e6
    asked, sent_bytes = len(host.requests), host.sent_bytes
    assert bench.run(f"{host.url}/m/{FIRST}", sha256=SHA256) == 0
    assert bench.holds(MODEL)
    assert not [r for r in host.requests[asked:] if r.path.endswith(FIRST)][1:]
    assert host.sent_bytes - sent_bytes < missing_bytes + 2_000_000


@pytest.mark.slow
def test_part_with_damaged_bytes_is_fetched_anew(bench: Bench, host: FileHost) -> None:
    with killed_in_the_second_shard(bench, host).open("r+b") as stream:
        stream.write(b"\xff" * 100)
    assert bench.run(f"{host.url}/m/{FIRST}", sha256=SHA256) == 0
    assert bench.holds(MODEL)


@pytest.mark.parametrize(
    ("size_bytes", "control"),
    [(3 << 20, None), (len(MODEL[FIRST]), None), (3 << 20, b""), (3 << 20, b"\0\1\xff")],
    ids=["no control file", "no control file, full size", "empty control file", "damaged control file"],
)
def test_part_that_a_power_cut_left_is_begun_again(
    bench: Bench,
    host: FileHost,
    monkeypatch: pytest.MonkeyPatch,
    without_pauses: list[float],
    size_bytes: int,
    control: bytes | None,
) -> None:
    def cut(_: object, url: str, part: Path, on_bytes: object) -> int:
        part.write_bytes(bytes(size_bytes))
        if control is not None:
            control_file(part).write_bytes(control)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download.Downloader, "_aria2", cut)
        assert bench.run(f"{host.url}/m/{FIRST}", sha256=SHA256) == 130
    asked = len(host.requests)
    assert bench.run(f"{host.url}/m/{FIRST}", sha256=SHA256) == 0
    assert bench.holds(MODEL)
    ranges = [r.headers.get("Range", "") for r in host.requests[asked:] if r.path.endswith(FIRST)]
    assert not [each for each in ranges if each.startswith(f"bytes={size_bytes}-")]  # as if all before it were there


@pytest.mark.slow
def test_part_of_another_source_is_not_resumed(bench: Bench, host: FileHost) -> None:
    killed_in_the_second_shard(bench, host)
    other = tiny_set("big", shards=3, floats=2_200_000, seed=9)
    host.files |= {f"/other/{name}": data for name, data in other.items()}
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in other.items()}
    asked = len(host.requests)
    assert bench.run(f"{host.url}/other/{FIRST}", sha256=sha256) == 0
    assert bench.holds(other)
    firsts = [r for r in host.requests[asked:] if r.path.endswith(SECOND) and "Range" not in r.headers]
    assert len(firsts) == 1  # aria2 begins a new file without a range


@pytest.mark.slow
def test_orphan_of_a_killed_run_is_waited_for(bench: Bench, host: FileHost) -> None:
    host.rate_bytes_s = 1e6
    with bench.start(f"{host.url}/m/{FIRST}", sha256=SHA256) as run:
        until(lambda: host.sent_bytes > 100_000, 10)
        os.kill(run.pid, signal.SIGKILL)
    asked = len(host.requests)
    with bench.start(f"{host.url}/m/{FIRST}", sha256=SHA256) as second:
        assert second.stderr is not None
        assert second.stderr.readline() == "M: waiting for another run that is at work on it\n"
        # The orphan would need another 8 s for its file, but ends when it misses its parent.
        until(lambda: any(r.headers.get("Range") == "bytes=0-0" for r in host.requests[asked:]), 4)
        host.rate_bytes_s = None
        assert second.wait() == 0
    assert bench.holds(MODEL)


def test_program_has_a_help() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "moehost.fetch", "--help"], capture_output=True, text=True, check=True
    )
    assert "python3 -m moehost.fetch --verify /srv/models/" in shown.stdout
