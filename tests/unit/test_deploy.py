"""The whole deploy against a fake node where nothing is there: it plans, renders, and keeps hosts apart."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SERVICE = {"name": "tiny", "model": {"name": "m", "source": "file:///srv/m.gguf"}}


def deploy(
    tmp_path: Path, hosts: list[tuple[str, dict[str, Any]]], *options: str
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "hosts.py").write_text(f"nodes = {hosts!r}\n")
    # A fake command takes half a second if nothing else is said.
    environment = os.environ | {"PYINFRA_FAKE_DELAY": "0", "PYINFRA_FAKE_DELAY_JITTER": "0"}
    command = ["pyinfra", str(tmp_path / "hosts.py"), "deploy.py", *options]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def test_a_node_where_nothing_is_there_can_be_planned(tmp_path: Path) -> None:
    run = deploy(tmp_path, [("@fake/bare", {"services": [SERVICE]})], "--dry")
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    for operation in ("Base | Install packages", "Models | Have m in the store", "Service | Run tiny, warm"):
        assert operation in run.stderr


def test_wrong_settings_end_one_host_before_anything_is_touched(tmp_path: Path) -> None:
    wrong = {"services": [{**SERVICE, "contxt": 1}]}
    hosts = [("@fake/good", {"services": [SERVICE]}), ("@fake/wrong", wrong)]
    run = deploy(tmp_path, hosts, "--dry")
    assert "[@fake/wrong] services[0].contxt: unknown setting; did you mean 'context'?" in run.stderr
    assert "Traceback" not in run.stderr
    detected = run.stderr.partition("Detected changes")[2]
    assert "@fake/good" in detected
    assert "@fake/wrong" not in detected


def test_no_host_with_right_settings_is_a_failure(tmp_path: Path) -> None:
    run = deploy(tmp_path, [("@fake/wrong", {"servces": []})], "-y")
    assert run.returncode == 1
    assert "servces: unknown setting; did you mean 'services'?" in run.stderr
    assert "Starting operation" not in run.stderr


def test_a_file_that_a_setting_names_must_be_here(tmp_path: Path) -> None:
    run = deploy(tmp_path, [("@fake/node", {"services": [{**SERVICE, "api_keys_file": "/nowhere"}]})], "-y")
    assert run.returncode == 1
    assert "services[0].api_keys_file: /nowhere is not a file on this computer" in run.stderr
