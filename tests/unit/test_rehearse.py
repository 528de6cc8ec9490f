"""The rehearsal of a plan, with a stub in the engine's place: a script that says what a llama-server would say.

The real engine is asked in tests/engine.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moehost import rehearse
from moehost.gguf import read_heads, read_set
from moehost.rehearsal import Job, Result, Shard, shards
from moehost.rehearse import RehearsalError, arguments, overcommitting, run, write_sparse
from tests.fixtures.waiting import until
from tests.unit.full_size import Layout, qwen35_397b, write, write_split

SOURCE = Path(__file__).parents[2] / "src"
ARGV = ("-m", "/srv/models/m.gguf", "--host", "0.0.0.0", "--port", "8080", "-c", "4096", "--no-mmap")
SMALL = Layout({"general.architecture": "llama"}, [(f"{name}.weight", (1 << 20, 64), "Q8_0") for name in "abcd"], 50)

# Notes what it was given, says its lines, and then does what MODE tells.
STUB = """\
#!{python}
import json, os, sys, time
if "--help" in sys.argv:
    sys.exit(print({help!r}))
model = sys.argv[sys.argv.index("-m") + 1]
folder = os.path.dirname(model)
files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
seen = dict(argv=sys.argv[1:], env=dict(os.environ), cwd=os.getcwd(), pid=os.getpid(), nice=os.nice(0))
seen["files"] = {{name: os.stat(os.path.join(folder, name)).st_size for name in files}}
seen["blocks"] = sum(os.stat(os.path.join(folder, name)).st_blocks * 512 for name in files)
seen["heads"] = [open(os.path.join(folder, name), "rb").read(24).hex() for name in files]
seen["overcommit"] = open(os.environ.get("OVERCOMMIT", os.devnull)).read()
open("llama.log", "w").write("as the engine does")
with open({report!r} + ".part", "w") as report:
    json.dump(seen, report)
os.rename({report!r} + ".part", {report!r})
for line in {lines!r}:
    print(line, flush=True)
{then}
"""
BUFFERS = [
    "llm_load_tensors:        CPU buffer size =    12.00 MiB",
    "f:        CPU compute buffer size =     3.00 MiB",
]
READY = "INFO [                    main] HTTP server listening | tid=1"
SERVE = "time.sleep(60)"


class Bench:
    """One stub and a job for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.report = folder, folder / "report.json"
        self.work = folder / "work"  # where the sparse files go
        self.work.mkdir()
        self.job = Job(str(folder / "stub-llama-server"), ARGV, folder=str(self.work), timeout_s=20)

    def stub(self, *lines: str, then: str = SERVE, help_text: str = "  -dr, --dry-run    skip data") -> None:
        path = Path(self.job.engine)
        path.write_text(
            STUB.format(python=sys.executable, help=help_text, report=str(self.report), lines=lines, then=then)
        )
        path.chmod(0o755)

    def model(self, layout: Layout, count: int = 1) -> list[Path]:
        """Puts a model's headers into the job, and returns its files."""
        source = self.folder / "source"
        source.mkdir()
        paths = write_split(source, layout, count) if count > 1 else [write(source / "m.gguf", layout)]
        found = read_set(paths)
        headers = self.folder / "headers.bin"
        headers.write_bytes(b"".join(read_heads(found)))
        self.job = replace(self.job, shards=shards(found), headers=str(headers))
        return paths

    @property
    def seen(self) -> dict[str, Any]:
        return json.loads(self.report.read_text())

    def start(self, **env: str) -> subprocess.Popen[str]:
        path = self.folder / "job.json"
        path.write_text(self.job.to_json())
        return subprocess.Popen(
            [sys.executable, "-m", "moehost.rehearse", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(SOURCE)} | env,
        )

    def run(self, **env: str) -> tuple[int, Result, str]:
        child = self.start(**env)
        out, err = child.communicate(timeout=60)
        return child.returncode, Result.parse(out), err


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class TestRehearsal:
    def test_an_engine_that_is_ready_is_ended_and_nothing_stays(self, bench: Bench) -> None:
        bench.stub(*BUFFERS, READY)
        bench.model(SMALL)
        status, result, err = bench.run()
        assert (status, result.refusal, result.status, err) == (0, None, None, "")
        assert result.log.splitlines() == [*BUFFERS, READY]
        assert result.elapsed_s < 15
        assert not is_alive(bench.seen["pid"])
        assert list(bench.work.iterdir()) == []

    def test_the_engine_gets_true_headers_with_holes_of_true_length(self, bench: Bench) -> None:
        bench.stub(READY)
        (path,) = bench.model(qwen35_397b())
        assert bench.run()[0] == 0
        assert bench.seen["files"] == {"m.gguf": path.stat().st_size}
        assert bench.seen["files"]["m.gguf"] > 228e9 > 16e6 > bench.seen["blocks"]

    def test_all_shards_of_a_set_under_their_own_names(self, bench: Bench) -> None:
        bench.stub(READY)
        paths = bench.model(SMALL, count=3)
        assert bench.run()[0] == 0
        seen = bench.seen
        assert seen["files"] == {path.name: path.stat().st_size for path in paths}
        assert seen["heads"] == [path.read_bytes()[:24].hex() for path in paths]
        assert Path(seen["argv"][1]).name == paths[0].name

    def test_what_is_written_is_read_as_the_same_model(self, bench: Bench, tmp_path: Path) -> None:
        paths = bench.model(SMALL, count=3)
        folder = tmp_path / "again"
        folder.mkdir()
        assert bench.job.headers
        first = write_sparse(folder, bench.job.shards, Path(bench.job.headers))
        again = read_set([folder / path.name for path in paths])
        assert first == folder / paths[0].name
        assert (again.tensors, again.metadata) == (read_set(paths).tensors, read_set(paths).metadata)

    def test_without_shards_the_model_of_the_plan_is_tried(self, bench: Bench) -> None:
        bench.stub(READY)
        assert bench.run()[0] == 0
        assert bench.seen["argv"][:2] == ["-m", "/srv/models/m.gguf"]

    def test_the_engine_stands_apart_from_services(self, bench: Bench) -> None:
        bench.stub(READY)
        bench.job = replace(bench.job, env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
        assert bench.run(LLAMA_ARG_CTX_SIZE="7", HOME="/root")[0] == 0
        env = bench.seen["env"]
        assert (env["CUDA_DEVICE_ORDER"], env["GGML_CUDA_NO_PINNED"], env["HOME"]) == ("PCI_BUS_ID", "1", "/root")
        assert "LLAMA_ARG_CTX_SIZE" not in env
        assert bench.seen["nice"] >= 10
        assert Path(bench.seen["cwd"]).parent == bench.work

    def test_files_may_be_named_from_where_it_stands(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.stub(READY)
        (path,) = bench.model(SMALL)
        bench.job = replace(bench.job, headers="headers.bin", folder=".")
        monkeypatch.chdir(bench.folder)
        assert bench.run()[0] == 0
        assert bench.seen["files"] == {"m.gguf": path.stat().st_size}

    def test_the_sign_may_come_in_two_pieces(self, bench: Bench) -> None:
        pieces = (
            "for piece in ('HTTP server', ' listening'): sys.stdout.write(piece); sys.stdout.flush(); time.sleep(.3)"
        )
        bench.stub(then=f"{pieces}\n{SERVE}")
        assert bench.run()[0] == 0


class TestRefusal:
    def test_an_engine_without_dry_run_is_not_started(self, bench: Bench) -> None:
        bench.stub(READY, help_text="  -dry   other\n  --dry-runs N\n  --no-warmup")
        bench.model(SMALL)
        status, result, err = bench.run()
        assert status == 1 and result.refusal
        assert "has no --dry-run; only ik_llama.cpp" in result.refusal
        assert err == f"error: {result.refusal}\n"
        assert not bench.report.exists()

    def test_no_engine(self, bench: Bench) -> None:
        status, result, _ = bench.run()
        assert status == 1 and result.refusal and "name an installed llama-server" in result.refusal

    def test_memory_that_is_refused_comes_with_a_way_to_mend_it(self, bench: Bench) -> None:
        log = (Path(__file__).parents[1] / "fixtures" / "dry_run" / "refused-memory.log").read_text()
        bench.stub(*log.splitlines(), then="sys.exit(1)")
        status, result, err = bench.run()
        assert (status, result.status) == (1, 1)
        assert result.refusal and "vm.overcommit_memory=1" in result.refusal
        assert err.count("\n") == 1

    def test_an_end_without_a_known_reason_gives_its_last_words(self, bench: Bench) -> None:
        bench.stub("terminate called", "  what(): stoi", "", then="sys.exit(3)")
        assert bench.run()[1].refusal == "the engine ended with status 3: what(): stoi"

    def test_an_engine_that_is_killed(self, bench: Bench) -> None:
        bench.stub(*BUFFERS, then="os.kill(os.getpid(), 9)")
        _, result, _ = bench.run()
        assert result.status == -9 and result.refusal and "memory runs out" in result.refusal

    def test_an_engine_that_never_gets_ready_is_ended_in_time(self, bench: Bench) -> None:
        bench.stub(*BUFFERS)
        bench.job = replace(bench.job, timeout_s=1)
        status, result, _ = bench.run()
        assert (status, result.refusal) == (1, "the engine was not ready after 1 s; give the job a larger timeout_s")
        assert result.log.splitlines() == BUFFERS
        assert not is_alive(bench.seen["pid"])

    def test_an_endless_log_is_cut(self, bench: Bench) -> None:
        bench.stub(then="while True: print('x' * 10000)")
        status, result, _ = bench.run()
        assert status == 1 and result.refusal and "take verbose flags" in result.refusal
        assert not is_alive(bench.seen["pid"])


class TestEnds:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_a_signal_ends_the_engine_and_removes_the_files(self, bench: Bench, number: signal.Signals) -> None:
        bench.stub(*BUFFERS)
        bench.model(SMALL)
        child = bench.start()
        until(bench.report.exists, 20)
        assert list(bench.work.iterdir()) != []
        child.send_signal(number)
        child.communicate(timeout=20)
        assert child.returncode == 128 + number
        assert list(bench.work.iterdir()) == []
        assert not is_alive(bench.seen["pid"])

    def test_the_engine_dies_with_a_program_that_is_killed(self, bench: Bench) -> None:
        bench.stub(*BUFFERS)
        child = bench.start()
        until(bench.report.exists, 20)
        child.kill()
        child.communicate(timeout=20)
        until(lambda: not is_alive(bench.seen["pid"]), 20)


class TestFiles:
    def test_headers_must_be_those_of_the_shards(self, bench: Bench) -> None:
        bench.stub(READY)
        bench.model(SMALL)
        bench.job = replace(bench.job, shards=(*bench.job.shards, Shard("n.gguf", 10, 20)))
        status, result, _ = bench.run()
        assert status == 1 and result.refusal and "send it anew" in result.refusal
        assert list(bench.work.iterdir()) == [] and not bench.report.exists()

    def test_a_file_system_without_holes_is_refused(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Imitated: a truncate that writes the zeros out."""
        bench.model(SMALL)
        lengths = []

        def truncate(path: Path, length: int) -> None:
            lengths.append(length)
            path.write_bytes(bytes(length))

        monkeypatch.setattr(rehearse, "HOLE_BYTES", 1 << 20)
        monkeypatch.setattr(os, "truncate", truncate)
        assert bench.job.headers
        with pytest.raises(RehearsalError, match="has no sparse files; name a folder on another one"):
            write_sparse(bench.work, bench.job.shards, Path(bench.job.headers))
        assert lengths == [1 << 20]
        assert list(bench.work.iterdir()) == []

    def test_a_full_disk_is_refused(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.model(SMALL)
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=256, f_frsize=4096))  # 1 MiB
        assert bench.job.headers
        with pytest.raises(RehearsalError, match="has no room for"):
            write_sparse(bench.work, bench.job.shards, Path(bench.job.headers))

    def test_a_file_that_is_too_long_for_the_file_system(self, bench: Bench) -> None:
        bench.stub(READY)
        bench.model(SMALL)
        bench.job = replace(bench.job, shards=(replace(bench.job.shards[0], size_bytes=1 << 62),))
        status, result, _ = bench.run()
        assert status == 1 and result.refusal and re.search(r"takes no file of \d+ bytes \(.+\)", result.refusal)
        assert list(bench.work.iterdir()) == []


class TestOvercommit:
    """With a file of the test in the place of the kernel's."""

    @pytest.fixture
    def setting(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = bench.folder / "overcommit_memory"
        path.write_text("2\n")
        monkeypatch.setattr(rehearse, "OVERCOMMIT", path)
        monkeypatch.setenv("OVERCOMMIT", str(path))
        return path

    def test_it_is_set_for_the_time_of_the_check_if_asked_for(self, bench: Bench, setting: Path) -> None:
        bench.stub(READY)
        assert run(replace(bench.job, overcommit=True)).refusal is None
        assert bench.seen["overcommit"] == "1"
        assert setting.read_text() == "2\n"

    def test_it_is_left_alone_else(self, bench: Bench, setting: Path) -> None:
        bench.stub(READY)
        assert run(bench.job).refusal is None
        assert bench.seen["overcommit"] == "2\n"

    def test_it_is_restored_after_a_failure(self, setting: Path) -> None:
        with pytest.raises(KeyError), overcommitting():
            assert setting.read_text() == "1"
            raise KeyError
        assert setting.read_text() == "2\n"

    def test_a_container_that_may_not_set_it(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.stub(READY)
        read_only = SimpleNamespace(read_text=lambda: "0\n", write_text=_refuse)
        monkeypatch.setattr(rehearse, "OVERCOMMIT", read_only)
        with pytest.raises(RehearsalError, match="Read-only file system; run as root of the machine itself"):
            run(replace(bench.job, overcommit=True))
        assert not bench.report.exists() and list(bench.work.iterdir()) == []


def _refuse(_: str) -> None:
    raise OSError(30, "Read-only file system")


class TestArguments:
    def test_a_services_own_are_replaced(self) -> None:
        service = [
            "-m",
            "a.gguf",
            "--alias",
            "x",
            "--host",
            "0.0.0.0",
            "--port",
            "8080",
            "--api-key-file",
            "%d/api-keys",
        ]
        service += ["-c", "4096", "-ot", "blk[.]0=CUDA0", "--no-mmap"]
        rehearsed = ["-m", "b.gguf", "--alias", "x", "-c", "4096", "-ot", "blk[.]0=CUDA0", "--no-mmap"]
        assert arguments(service, "b.gguf") == [
            *(*rehearsed, "--host", "127.0.0.1", "--port", "0"),
            *("--dry-run", "--no-warmup"),
        ]

    def test_those_that_would_hide_the_log_go(self) -> None:
        owner = ["-m", "a.gguf", "--log-disable", "--port", "1", "--log-file", "x", "--port", "2", "-np", "2"]
        assert arguments(owner, "a.gguf")[:4] == ["-m", "a.gguf", "-np", "2"]
        assert arguments(owner, "a.gguf").count("--port") == 1


class TestJob:
    def test_it_survives_the_way_to_a_node(self, bench: Bench) -> None:
        bench.model(SMALL, count=2)
        job = replace(bench.job, env={"A": "b"}, overcommit=True)
        assert Job.parse(job.to_json()) == job

    def test_the_example_of_the_help_is_one(self) -> None:
        text = rehearse.EXAMPLES
        job = Job.parse(text[text.index("  {") : text.index("  headers:")])
        assert job.shards[0].size_bytes == 228234805728
        defaults = Job(job.engine, job.argv)
        assert replace(job, shards=(), headers=None) == defaults

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"engine": "llama-server"}, "absolute path"),
            ({"argv": ["-c", "1"]}, "names no model"),
            ({"argv": ["-c", 1]}, "list of texts"),
            ({"argv": None}, "lacks something or has too much"),
            ({"model": "x"}, "lacks something or has too much"),
            ({"headers": "/tmp/h"}, "belong together"),
            ({"shards": [{"name": "a.gguf", "header_bytes": 1, "size_bytes": 2}]}, "belong together"),
            ({"shards": [{"name": "a.gguf"}]}, "lacks something or has too much"),
            (
                {"shards": [{"name": "../a.gguf", "header_bytes": 1, "size_bytes": 2}], "headers": "h"},
                "no plain name",
            ),
            ({"shards": [{"name": "a.gguf", "header_bytes": 3, "size_bytes": 2}], "headers": "h"}, "does not fit"),
        ],
    )
    def test_a_bad_one_is_refused_in_one_line(self, bench: Bench, changes: dict[str, Any], said: str) -> None:
        path = bench.folder / "job.json"
        path.write_text(json.dumps(json.loads(bench.job.to_json()) | changes))
        done = subprocess.run(
            [sys.executable, "-m", "moehost.rehearse", path],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr and done.stderr.count("\n") == 1


def test_its_modules_are_all_it_needs(bench: Bench) -> None:
    """On a node there is neither the rest of the package nor anything that it depends on."""
    bench.stub(READY)
    (bench.folder / "job.json").write_text(bench.job.to_json())
    package = bench.folder / "node" / "moehost"
    package.mkdir(parents=True)
    for name in rehearse.MODULES:
        (package / f"{name}.py").write_bytes((SOURCE / "moehost" / f"{name}.py").read_bytes())
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "moehost.rehearse", bench.folder / "job.json"],
        capture_output=True,
        text=True,
        cwd=package.parent,
    )
    assert (done.returncode, done.stderr) == (0, "")
