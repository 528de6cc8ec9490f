"""The program that measures a node: its parts on this computer, its cards with a stub of libcuda."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from moehost import measure, pcie
from moehost.cli import main

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("cc") or shutil.which("gcc") or ""

compiled = pytest.mark.skipif(not COMPILER, reason="no C compiler is installed")


@pytest.fixture(scope="module")
def triad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("triad") / "triad"
    source = ROOT / "templates/measure/triad.c"
    flags = ["-O3", "-march=native", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run([COMPILER, *flags, source, "-o", program], check=True)
    return program


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("stub") / "stub-libcuda.so"
    source = Path(__file__).with_name("stub_libcuda.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", source, "-o", path], check=True)
    return ctypes.CDLL(str(path))


@compiled
class TestTriad:
    def test_it_measures(self, triad: Path) -> None:
        done = subprocess.run([triad, "0", "32", "0.2"], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        assert (found["threads"], found["array_mib"]) == (1, 32)
        for kind in ("read_gb_s", "triad_gb_s"):
            assert 0 < found[kind]["median"] <= found[kind]["best"]

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["0-x", "1", "1"], "write CPUS and NODES as 0-3,8"),
            (["4000", "1", "1"], "can't run on one of CPUS"),
            (["99999", "1", "1"], "a number is too high"),
            (["0", "0", "1"], "usage: triad CPUS MIB SECONDS [NODES]"),
            ([], "usage: triad CPUS MIB SECONDS [NODES]"),
        ],
    )
    def test_bad_input_is_one_line(self, triad: Path, words: list[str], says: str) -> None:
        done = subprocess.run([triad, *words], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"triad: {says}\n")


@compiled
class TestStubCards:
    def test_each_card_has_a_rate(self, library: ctypes.CDLL) -> None:
        (card,) = pcie.cards(library, size=1 << 20, times=3)
        assert card["card"] == "Stub card"
        assert float(str(card["host_to_device_gb_s"])) > 0
        assert library.left_open() == 0

    @pytest.mark.parametrize("function", ["cuInit", "cuMemcpyHtoD_v2"])
    def test_a_refusal_names_the_call(
        self, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, function: str
    ) -> None:
        monkeypatch.setenv("REFUSED", function)
        with pytest.raises(pcie.CudaError, match=f"{function} answers with error 999"):
            pcie.cards(library, size=1 << 20, times=3)
        assert library.left_open() == 0


class TestSystem:
    @pytest.fixture
    def system(self, tmp_path: Path) -> Path:
        """Two cores with two threads each, a cache for both, a NUMA node each and one without memory."""
        for cpu in range(4):
            folder = tmp_path / f"cpu/cpu{cpu}"
            (folder / "topology").mkdir(parents=True)
            (folder / "topology/thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
            (folder / "cache/index3").mkdir(parents=True)
            (folder / "cache/index3/size").write_text("32768K\n")
            (folder / "cache/index3/shared_cpu_list").write_text("0-3\n")
        (tmp_path / "node").mkdir()
        (tmp_path / "node/has_memory").write_text("0-1\n")
        for node in range(2):
            (tmp_path / f"node/node{node}").mkdir()
            (tmp_path / f"node/node{node}/cpulist").write_text(f"{node},{node + 2}\n")
        return tmp_path

    def test_one_processor_of_each_core(self, system: Path) -> None:
        assert measure.cores(system, {0, 1, 2, 3}) == [0, 1]
        assert measure.cores(system, {1, 2, 3}) == [1, 2]

    def test_a_cache_counts_once(self, system: Path) -> None:
        assert measure.l3_mib(system) == 32

    def test_nodes_have_their_processors(self, system: Path) -> None:
        assert measure.nodes(system, [0, 1]) == {0: [0], 1: [1]}

    def test_a_machine_that_says_nothing(self, tmp_path: Path) -> None:
        assert measure.cores(tmp_path, {0, 1}) == [0, 1]
        assert measure.l3_mib(tmp_path) == 0
        assert measure.nodes(tmp_path, [0, 1]) == {}


class TestDisk:
    def test_the_largest_file_is_read_once(self, tmp_path: Path) -> None:
        (tmp_path / "small").write_bytes(b"1")
        (tmp_path / "large").write_bytes(bytes(20 << 20))
        found = measure.disk_speed(tmp_path, 10)
        assert found is not None
        assert (found["path"], found["read_mib"]) == (str(tmp_path / "large"), 20)
        assert found["read_gb_s"] > 0

    def test_nothing_to_read(self, tmp_path: Path) -> None:
        assert measure.disk_speed(tmp_path, 1) is None
        assert measure.disk_speed(tmp_path / "absent", 1) is None


def test_a_program_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(measure.Refusal, match=r"^sh: x.c:1: error: no$"):
        measure.run(
            ["sh", "-c", "echo note >&2; echo 'x.c:1: error: no' >&2; echo end >&2; exit 1"], tmp_path, None, 9
        )


def test_what_is_kept_is_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "moehost/measured.json"
    for value in (1, 2):
        measure.keep({"a": value}, path)
    assert json.loads(path.read_text()) == {"a": 2}
    assert path.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in path.parent.iterdir()] == ["measured.json"]


def test_without_a_compiler_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job = {"path": str(tmp_path / "measured.json")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert measure.main([str(tmp_path / "job.json")]) == 0
    assert "there is no C compiler; add --install-compiler" in json.loads(capsys.readouterr().out)["refusal"]
    assert not (tmp_path / "measured.json").exists()


class TestCommand:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["node"], "moehost: node: write the host as @node\n"),
            (["@other"], "moehost: @other: is no host of {inventory}; it has node\n"),
            (["@node", "--path", "m"], "moehost: --path: 'm' is not absolute; write the path on the node"),
        ],
    )
    def test_bad_input_is_one_line(self, tmp_path: Path, words: list[str], says: str) -> None:
        inventory = tmp_path / "hosts.py"
        inventory.write_text("nodes = ['node']\n")
        result = CliRunner().invoke(main, ["measure", *words, "--inventory", str(inventory)])
        assert result.exit_code == 2
        assert result.stderr.startswith(says.format(inventory=inventory))
        assert result.stderr.count("\n") == 1
