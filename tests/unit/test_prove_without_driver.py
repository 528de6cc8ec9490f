"""The proof of a build with CUDA where there is no driver: what can be seen is looked at, the rest is said."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from moehost import prove
from moehost.prove import Job

COMMIT = "8337e4cd3861406fc04e0854b1409cd1b027fbc9"
# As the loader: without the driver's library there is not even a version.
SERVER = """#!/bin/sh
for folder in $(echo "$LD_LIBRARY_PATH" | tr : ' '); do
    [ -e "$folder/libcuda.so.1" ] && found=1
done
[ "$found" ] || { echo "libcuda.so.1: cannot open shared object file" >&2; exit 127; }
case $1 in
--version) echo "version: 4840 (8337e4cd3)" >&2 ;;
--help) echo "  -ngl,  --gpu-layers N" ;;
esac
"""
CUOBJDUMP = "#!/bin/sh\necho 'ELF file    1: llama-server.1.sm_120.cubin'\n"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A build for CUDA, and the toolkit that it was made with."""
    # The program changes it, for the programs that it starts.
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    for name, text in (("llama-server", SERVER), ("cuobjdump", CUOBJDUMP)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "libcuda.so").write_text("a stub")
    return Job(
        programs=str(tmp_path),
        commit=COMMIT,
        build_number=4840,
        architectures=["120"],
        vnni=False,
        cuobjdump=f"{tmp_path}/cuobjdump",
        model="/nonexistent.gguf",
        gpu_layers=None,
        driver_stub=f"{tmp_path}/libcuda.so",
    )


def proven(job: Job, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the program says."""
    prove.main(json.dumps(asdict(job)))
    return dict(json.loads(capsys.readouterr().out))


def test_with_a_stub_the_server_starts_and_is_not_asked(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert proven(job, capsys) == {
        "proofs": {
            "version": "4840 (8337e4cd3)",
            "gpu_options": "in --help",
            "device_code": "sm_120",
            "answer": "not asked: there is no driver",
        },
        "failure": None,
    }


def test_without_one_it_is_not_started_and_each_finding_says_so(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    Path(job.driver_stub or "").unlink()
    idle = "not started: there is no driver, and no stub of it"
    assert proven(job, capsys) == {
        "proofs": {"version": idle, "gpu_options": idle, "device_code": "sm_120", "answer": idle},
        "failure": None,
    }


@pytest.mark.parametrize(
    ("old", "new", "failure"), [("8337e4cd3)", "1234567)", "--version says"), ("sm_120", "sm_90", "sm_90")]
)
def test_what_is_wrong_is_found_all_the_same(
    job: Job, capsys: pytest.CaptureFixture[str], old: str, new: str, failure: str
) -> None:
    for name in ("llama-server", "cuobjdump"):
        program = Path(job.programs, name)
        program.write_text(program.read_text().replace(old, new))
    assert failure in proven(job, capsys)["failure"]


def test_the_stub_is_for_what_has_no_driver_alone(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    found = proven(Job(**{**asdict(job), "driver_stub": None}), capsys)
    assert "libcuda.so.1: cannot open shared object file" in found["failure"]
