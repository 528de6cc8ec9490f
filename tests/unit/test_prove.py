"""What a proof makes of what a build says; the stubs say what no real one can here, that is in `engine_node`."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from moehost import prove
from moehost.prove import Job, NotProven

COMMIT = "8337e4cd3861406fc04e0854b1409cd1b027fbc9"
# The form of `cuobjdump --list-elf` of CUDA 12 and 13.
LISTING = "ELF file    1: llama-server.1.sm_{0}.cubin\nELF file    2: llama-server.2.sm_{0}.cubin\n"


def stub(path: Path, script: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A build that says what it should, without CUDA."""
    answers = '--version) echo "version: 4840 (8337e4cd)" >&2 ;; --help) echo "  -c,    --ctx-size N"; exit 1 ;;'
    stub(tmp_path / "bin/llama-server", f"case $1 in {answers} esac")
    return Job(str(tmp_path / "bin"), COMMIT, 4840, [], False, None, "", None)


def refusal(proof: str, job: Job) -> str:
    with pytest.raises(NotProven) as reason:
        getattr(prove, proof)(job)
    return str(reason.value)


def test_the_version_says_commit_and_number(job: Job) -> None:
    assert prove._version(job) == "4840 (8337e4cd)"


@pytest.mark.parametrize(
    "other", [{"commit": "0" * 40}, {"build_number": 1}], ids=["another commit", "a shallow checkout"]
)
def test_another_version(job: Job, other: dict[str, object]) -> None:
    said = refusal("_version", replace(job, **other))  # type: ignore[arg-type]
    assert said.startswith("--version says 4840 (8337e4cd), and ")


def test_no_version_at_all(job: Job, tmp_path: Path) -> None:
    stub(tmp_path / "bin/llama-server", "echo 0 unknown")
    assert refusal("_version", job) == "--version says '0 unknown', not a build number and a commit"


def test_a_server_that_is_not_there(job: Job) -> None:
    assert "does not run: [Errno 2]" in refusal("_version", replace(job, programs="/nonexistent"))


def test_a_build_for_the_cpu_where_cuda_was_wanted(job: Job) -> None:
    assert prove._gpu_options(job) == "none, CUDA is off"
    assert refusal("_gpu_options", replace(job, architectures=["120"])) == "--help has no GPU options, and CUDA is on"


def test_a_build_for_cuda_where_none_was_wanted(job: Job, tmp_path: Path) -> None:
    stub(tmp_path / "bin/llama-server", "echo '  -ngl,  --gpu-layers N'; exit 1")
    assert prove._gpu_options(replace(job, architectures=["120"])) == "in --help"
    assert refusal("_gpu_options", job) == "--help has GPU options, and CUDA is off"


def test_code_for_the_cards(job: Job, tmp_path: Path) -> None:
    tool = stub(tmp_path / "cuobjdump", f"printf '{LISTING.format('120')}'")
    with_tool = replace(job, architectures=["120"], cuobjdump=tool)
    assert prove._device_code(with_tool) == "sm_120"
    assert "and none for sm_89" in refusal("_device_code", replace(with_tool, architectures=["89", "120"]))


def test_without_the_tool_it_says_that_nobody_looked(job: Job) -> None:
    absent = replace(job, architectures=["120"], cuobjdump="/nonexistent/cuobjdump")
    assert prove._device_code(absent) == "not looked at: there is no cuobjdump"


def test_a_server_without_the_fast_instruction(job: Job) -> None:
    assert "there is no vpdpbusd in the server" in refusal("_vpdpbusd", replace(job, programs="/nonexistent"))


def test_a_server_that_ends_while_it_loads(job: Job, tmp_path: Path) -> None:
    stub(tmp_path / "bin/llama-server", "echo CUDA error: no kernel image; kill -ABRT $$")
    assert refusal("_answer", job) == "the server ends (SIGABRT) while it loads a model: CUDA error: no kernel image"


def test_the_program_prints_what_was_seen_and_what_was_not(job: Job) -> None:
    arguments = json.dumps(asdict(replace(job, build_number=7)))
    done = subprocess.run(
        [sys.executable, "-", arguments], input=Path(prove.__file__).read_text(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "proofs": {},
        "failure": "--version says 4840 (8337e4cd), and 7 (8337e4cd3) was built",
    }
