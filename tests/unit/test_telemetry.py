"""The program that tells how a node is: its whole output as a golden file, and what it does when something hangs.

`UPDATE_GOLDEN=1 pytest tests/unit/test_telemetry.py` writes the golden file anew; read the difference before you
commit.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moehost import telemetry
from moehost.exposition import parse
from moehost.figures import KINDS, OF_SOME_ENGINES
from moehost.telemetry_memory import Job, Service
from tests.fixtures.busy_server import KEY, BusyServer
from tests.fixtures.condition import cards
from tests.unit.test_node_figures import UNITS

GOLDEN = Path(__file__).parents[1] / "fixtures/telemetry/moehost.prom"
PLAN = {
    "ledger": [
        {"device": "CUDA0", "capacity_mib": 97887, "dense_mib": 8000, "experts_mib": 60000, "kv_mib": 7680,
         "state_mib": 187, "compute_mib": 5000, "margin_mib": 1024, "free_mib": 15996},
        {"device": "CPU", "capacity_mib": 786432, "dense_mib": 1000, "experts_mib": 140000, "cache_mib": 20000,
         "free_mib": 625432},
    ]
}  # fmt: skip
XID = "{time:.6f} node kernel: NVRM: Xid (PCI:0000:c1:00): 79, pid=1234, GPU has fallen off the bus."


class Node:
    """A node's files and programs, simulated."""

    def __init__(self, root: Path) -> None:
        self.root, self.credentials = root, root / "credentials"
        self.units, self.smi, self.log = UNITS, cards("c1"), ""
        self.asked: list[tuple[str, ...]] = []
        for folder in ("etc/moehost/q", "opt/moehost/engine/releases/8337-01", "run", "srv/models", "credentials"):
            (root / folder).mkdir(parents=True)
        (root / "etc/moehost/q/plan.json").write_text(json.dumps(PLAN))
        (root / "opt/moehost/engine/current").symlink_to("releases/8337-01")
        (root / "opt/moehost/engine/current/build.json").write_text('{"dialect": "ik", "version": "4821"}')
        (root / "run/reboot-required").touch()
        os.utime(root / "run/reboot-required", (1794000000, 1794000000))
        (self.credentials / "q").write_text(f"# the owner's\n{KEY}\nanother\n")

    def output(self, *command: str) -> str:
        self.asked.append(command)
        if command[0] == "systemctl":
            return self.units if "show" in command else "moehost-notify@.service static\n"
        return {"nvidia-smi": self.smi, "journalctl": self.log}[command[0]]

    def job(self, *ports: int, interval_s: int = 60, cards: int = 1) -> Job:
        names = ["q", "down"]
        services = [
            Service(name, f"llama-server-{name}.service", "127.0.0.1", port)
            for name, port in zip(names, ports, strict=False)
        ]
        return Job(
            tuple(services), cards, "/srv/models", str(self.root / "run/moehost.prom"), interval_s, str(self.root)
        )

    def run(self, job: Job) -> str:
        telemetry.run(job, self.credentials)
        return Path(job.output).read_text()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    found = Node(tmp_path)
    monkeypatch.setattr(telemetry, "_output", found.output)
    return found


@pytest.fixture
def server() -> Iterator[BusyServer]:
    with BusyServer() as found:
        yield found


def test_golden(node: Node, server: BusyServer) -> None:
    now_s = time.time()
    node.log = XID.format(time=now_s - 60) + "\n"
    text = node.run(node.job(server.port))
    text = re.sub(r"(?m)^(moehost_(?:models_\w+|scrape_duration_seconds\S*)) .*$", r"\1 0", text)
    text = text.replace(f"{now_s - 60:.6f}".rstrip("0"), "0")
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_it_tells_every_name_but_those_of_other_engines(node: Node, server: BusyServer) -> None:
    node.log = XID.format(time=time.time() - 60)
    told = set(parse(node.run(node.job(server.port))))
    assert set(KINDS) - told == set(OF_SOME_ENGINES) - {"moehost_kv_cache_usage_ratio"}


def test_no_key_is_told(node: Node, server: BusyServer) -> None:
    assert KEY not in node.run(node.job(server.port))
    assert not [path for path in node.root.rglob("run/*") if KEY in path.read_text(errors="replace")]


def test_a_busy_server_keeps_its_counters_and_nobody_else_waiting(
    node: Node, server: BusyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.run(node.job(server.port))
    server.counters["predicted_tokens"], server.busy_s = 100, 30
    monkeypatch.setattr(telemetry, "SOON_S", 0.3)
    monkeypatch.setattr(telemetry.scrape, "READY_S", 0.2)
    written: list[float] = []
    began, replace = time.monotonic(), telemetry.files.replace

    def noted(path: Path, data: bytes, durable: bool = True) -> None:
        if path.suffix == ".prom":
            written.append(time.monotonic() - began)
        replace(path, data, durable)

    monkeypatch.setattr(telemetry.files, "replace", noted)
    found = parse(node.run(node.job(server.port, interval_s=2)))
    soon, late = written
    assert soon < 1 < late < 2.5
    assert found["moehost_predicted_tokens_total"] == 48
    assert (found["moehost_scrape_success"], found["moehost_service_ready"]) == (0, 1)
    assert found["moehost_scrape_duration_seconds"] > 1
    # What it is at just now is not known.
    assert "moehost_requests_processing" not in found
    server.busy_s = 0
    assert parse(node.run(node.job(server.port)))["moehost_predicted_tokens_total"] == 100


def test_a_new_process_has_nothing_of_the_old_one(node: Node, server: BusyServer) -> None:
    node.run(node.job(server.port))
    node.units = UNITS.replace("@1795973944", "@1795999999")
    server.restart()
    server.has_metrics = False
    assert "moehost_predicted_tokens_total" not in parse(node.run(node.job(server.port)))
    server.has_metrics = True
    found = parse(node.run(node.job(server.port)))
    assert (found["moehost_predicted_tokens_total"], found["moehost_service_start_time_seconds"]) == (0, 1795999999)


def test_a_server_that_is_gone_has_no_counters_and_is_not_ready(node: Node, server: BusyServer) -> None:
    node.run(node.job(server.port))
    node.units = UNITS.replace("ActiveState=active", "ActiveState=failed")
    server.is_loading = server.says_503 = True
    found = parse(node.run(node.job(server.port)))
    assert (found["moehost_service_ready"], found["moehost_scrape_success"]) == (0, 0)
    assert not [name for name in found if name.startswith("moehost_predicted")]


def test_one_that_hangs_does_not_keep_the_others(
    node: Node, server: BusyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry.scrape, "READY_S", 0.2)
    with BusyServer() as stuck:
        stuck.is_loading = True
        text = node.run(node.job(server.port, stuck.port, interval_s=2))
    assert 'moehost_service_ready{service="q"} 1\nmoehost_service_ready{service="down"} 0\n' in text
    assert 'moehost_predicted_tokens_total{service="q"} 48\n' in text


def test_a_memory_that_is_cut_off_is_none(node: Node, server: BusyServer) -> None:
    job = node.job(server.port)
    Path(job.output).with_suffix(".json").write_text('{"services": {"q": [')
    assert parse(node.run(job))["moehost_predicted_tokens_total"] == 48


def test_without_cards_nothing_is_said_of_them_and_nvidia_smi_is_not_asked(node: Node, server: BusyServer) -> None:
    text = node.run(node.job(server.port, cards=0))
    assert "moehost_card" not in text and "moehost_xid" not in text
    assert {each[0] for each in node.asked} == {"systemctl"}


@pytest.mark.parametrize("smi", ["", "NVIDIA-SMI has failed", cards("c1")[:900]])
def test_cards_that_do_not_answer_are_missing(node: Node, server: BusyServer, smi: str) -> None:
    node.smi = smi
    found = parse(node.run(node.job(server.port)))
    assert (found["moehost_cards"], found["moehost_cards_expected"]) == (0, 1)
    assert "moehost_card_temperature_celsius" not in found


def test_the_kernels_log_is_read_once_and_its_lines_are_kept_for_a_fortnight(node: Node, server: BusyServer) -> None:
    now_s, job = time.time(), node.job(server.port)
    node.log = "\n".join(XID.format(time=now_s - age_s) for age_s in (14 * 86400 - 60, 3600))
    assert parse(node.run(job))["moehost_xid_lines"] == 2
    since = [int(word.removeprefix("--since=@")) for words in node.asked for word in words if "--since" in word]
    assert abs(since[0] - (now_s - 14 * 86400)) < 60
    # The second time only what is new is asked for; a line that comes twice counts once.
    node.asked.clear()
    node.log = "\n".join([XID.format(time=now_s - 3600), XID.format(time=now_s)])
    assert parse(node.run(job))["moehost_xid_lines"] == 3
    since = [int(word.removeprefix("--since=@")) for words in node.asked for word in words if "--since" in word]
    assert abs(since[0] - (now_s - telemetry.OVERLAP_S)) < 60


def test_a_plan_that_is_missing_is_said(node: Node, server: BusyServer) -> None:
    (node.root / "etc/moehost/q/plan.json").unlink()
    assert 'moehost_collector_success{collector="plan of q"} 0\n' in node.run(node.job(server.port))


def test_a_program_that_is_stuck_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "PROGRAM_S", 0.2)
    began = time.monotonic()
    assert telemetry._output("sleep", "30") == ""
    assert time.monotonic() - began < 10
    assert telemetry._output("no-such-program") == ""


def test_the_modules_are_all_it_needs_beside_the_standard_library() -> None:
    package = Path(telemetry.__file__).parent
    for module in telemetry.MODULES:
        for each in ast.walk(ast.parse((package / f"{module}.py").read_text())):
            if isinstance(each, ast.ImportFrom) and each.module:
                names = [alias.name for alias in each.names] if each.module == "moehost" else [each.module]
            elif isinstance(each, ast.Import):
                names = [alias.name for alias in each.names]
            else:
                continue
            for name in names:
                first = name.removeprefix("moehost.").split(".")[0]
                assert first in telemetry.MODULES or first in sys.stdlib_module_names, (module, name)
