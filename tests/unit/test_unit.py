"""Units: how words are written into them, and the whole text of some, as golden files.

`UPDATE_GOLDEN=1 pytest tests/unit/test_unit.py` writes `fixtures/units/` anew; read the difference before you commit.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from moehost import firewall, settings
from moehost.hardware import Node
from moehost.plan import make
from moehost.settings_access import PRIVATE
from moehost.settings_tuning import Tuning
from moehost.unit import exec_line
from roles.llama_server.units import Source
from roles.operations import render
from roles.rpc_worker.operations import unit as worker_unit
from tests.fixtures.planned_node import machine
from tests.unit.full_size import as_set, qwen35_397b
from tests.unit.machines import epyc_9175f, with_numa_nodes
from tests.unit.shared import SHARE, main_node, worker, worker_node

GOLDEN = Path(__file__).parents[1] / "fixtures/units"


def described(**more: Any) -> settings.Node:
    model = {"name": "Qwen3.5-397B-A17B-IQ4_NL", "source": "file:///srv/q-00001-of-00006.gguf"}
    firewall = more.pop("firewall", {})
    return settings.read(
        {
            "services": [{"name": "qwen", "model": model, **more}],
            "engine": {"image": {}},
            "firewall": firewall,
        }
    )


def service(**more: Any) -> settings.Service:
    return described(**more).services[0]


def unit(dialect: str, node: Node, podman: tuple[int, int] = (0, 0), huge_pages: str = "auto", **more: Any) -> str:
    """The unit or Quadlet of a service as it is planned for a machine."""
    on, tuning = described(**more), Tuning.model_validate({"huge_pages": huge_pages})
    wanted = on.services[0]
    path = "/srv/models/Qwen3.5-397B-A17B-IQ4_NL/q-00001-of-00006.gguf"
    plan = make(wanted, path, HEADERS, node, dialect, tuning=tuning)
    allowed = firewall.addresses(on, wanted)
    return Source(wanted, plan, path, "8337e4cd3861-b1f28538", allowed, podman).text("0123456789abcdef")


HEADERS = as_set(qwen35_397b())
RELEASE = "/opt/moehost/engine/releases/8337e4cd3861-b1f28538"
# Files of systemd's own format; those of containers are looked at by their own tests, too.
CONTAINERS = {
    "gpus-5.4.container": unit("ik", epyc_9175f(2), (5, 4), runtime="container"),
    "gpus-4.9.container": unit("ik", epyc_9175f(2), (4, 9), runtime="container", sys_nice=False),
    "cpu-5.4.container": unit("ik", epyc_9175f(0), (5, 4), runtime="container", context=8192, host="0.0.0.0"),
    "gpus-4.3.service": unit("ik", epyc_9175f(2), (4, 3), runtime="container"),
}
UNITS = {
    "cpu": unit("llama.cpp", epyc_9175f(0), context=8192, ubatch=512),
    "gpus": unit("ik", epyc_9175f(2), server_args=["--chat-template-file", "/srv/a b.jinja"]),
    "nodes": unit("ik", with_numa_nodes(4), huge_pages="static", numa="distribute", sys_nice=True),
    "open": unit(
        "llama.cpp",
        epyc_9175f(0),
        host="0.0.0.0",
        port=9000,
        memory_max="700G",
        start_timeout_s=600,
        warm_up_timeout_s=90,
    ),
}

WORKERS = {
    "worker": worker_unit(worker_node(), SHARE, RELEASE, "llama.cpp", machine(0)),
    "worker-cards": worker_unit(worker_node(), replace(SHARE, cache=True), RELEASE, "ik", machine(2)),
}

FILES = {f"{name}.service": text for name, text in (UNITS | WORKERS).items()} | CONTAINERS


def directives(text: str) -> list[tuple[str, str]]:
    """Key and value of each directive, in order; comments and sections left out."""
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return [tuple(line.split("=", 1)) for line in lines]  # type: ignore[misc]


def values(text: str, key: str) -> list[str]:
    return [value for name, value in directives(text) if name == key]


class TestExecLine:
    def test_plain_words_stay_as_they_are(self) -> None:
        words = [
            "/opt/x/llama-server",
            "-ts",
            "1,0.5",
            "--host",
            "::1",
            "-ot",
            "blk[.](3|4)[.]ffn_(up|gate)_exps=CPU",
        ]
        assert exec_line(words) == " ".join(words)

    def test_specifiers_are_left_to_work(self) -> None:
        assert exec_line(["--api-key-file", "%d/api-keys"]) == "--api-key-file %d/api-keys"

    @pytest.mark.parametrize("word", ["", "a b", "a;b", ";", "it's", "{1}", "a&b", "#a", "~", "ä", "a\tb"])
    def test_other_words_are_quoted(self, word: str) -> None:
        assert exec_line(["/bin/x", word]) == f'/bin/x "{word}"'

    @pytest.mark.parametrize("character", ["\\", "$", '"', "\n"])
    def test_what_systemd_and_quadlet_read_differently_is_refused(self, character: str) -> None:
        with pytest.raises(ValueError, match="which a unit would change"):
            exec_line(["/bin/x", f"a{character}b"])

    @given(st.lists(st.text(st.characters(exclude_characters='\\$"\n', exclude_categories=["Cc", "Cs"]))))
    def test_words_come_out_as_they_went_in(self, words: list[str]) -> None:
        # shlex reads double quotes as systemd does where there is no backslash.
        assert shlex.split(exec_line(words)) == words


class TestGolden:
    @pytest.mark.parametrize("name", FILES)
    def test_the_whole_unit(self, name: str) -> None:
        file = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            file.write_text(FILES[name])
        assert FILES[name] == file.read_text()

    def test_every_file_has_its_unit(self) -> None:
        assert {path.name for path in GOLDEN.iterdir()} == set(FILES)


@pytest.mark.parametrize("text", UNITS.values(), ids=UNITS)
class TestEveryUnit:
    def test_no_line_is_left_of_the_template(self, text: str) -> None:
        assert "{" not in text
        assert "}" not in text

    def test_a_percent_sign_is_a_specifier_that_is_meant(self, text: str) -> None:
        # %d: the credentials' directory; a lone % stands in a size. Everything else systemd would expand.
        assert set(re.findall(r"%.", text, re.DOTALL)) <= {"%d", "%\n"}
        assert "--api-key-file %d/api-keys" in values(text, "ExecStart")[0]

    def test_the_command_line_is_the_engines(self, text: str) -> None:
        program, *words = shlex.split(values(text, "ExecStart")[0])
        assert program == "/opt/moehost/engine/current/bin/llama-server"
        assert words[words.index("-m") + 1] == values(text, "ExecStartPre")[0].split()[1]

    def test_no_directive_is_empty_that_should_not_be(self, text: str) -> None:
        capabilities = ["CapabilityBoundingSet", "AmbientCapabilities"]
        empty = [] if "CAP_SYS_NICE" in text else capabilities
        assert [key for key, value in directives(text) if not value] == empty

    def test_a_directive_that_may_stand_once_stands_once(self, text: str) -> None:
        several = {"After", "Environment", "ExecStartPre", "ExecStartPost", "SystemCallFilter"}
        keys = [key for key, _ in directives(text) if key not in several]
        assert len(keys) == len(set(keys))

    def test_the_unit_is_ready_only_when_it_has_answered_warm(self, text: str) -> None:
        wait, warm, *rest = values(text, "ExecStartPost")
        assert wait.split()[0].endswith("/wait-ready")
        assert warm.split()[0].endswith("/warm-up")
        assert wait.split()[1] == warm.split()[1]
        has_cards = any("/cards-in-use" in each for each in rest)
        assert values(text, "Requires") == (["moehost-gpu.service"] if has_cards else [])
        assert int(wait.split()[2]) + int(warm.split()[2]) < int(values(text, "TimeoutStartSec")[0])

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
    def test_systemd_understands_every_line(self, text: str, tmp_path: Path) -> None:
        # The programs are not on this computer.
        here = re.sub(r"^(Exec\w+=)/\S+", r"\1/bin/true", text, flags=re.MULTILINE)
        path = tmp_path / "llama-server-qwen.service"
        path.write_text(here)
        (tmp_path / "moehost-gpu.service").write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n")
        verify = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
        assert [line for line in verify.stderr.splitlines() if path.name in line] == []


@pytest.mark.parametrize("text", WORKERS.values(), ids=WORKERS)
class TestEveryWorker:
    def test_no_line_is_left_of_the_template(self, text: str) -> None:
        assert not set("{}%") & set(text.replace("MemoryMax=92%", ""))

    def test_its_main_node_and_nobody_else_reaches_it_at_one_port(self, text: str) -> None:
        assert values(text, "IPAddressDeny") == ["any"]
        assert values(text, "IPAddressAllow") == [SHARE.main_address]
        assert values(text, "SocketBindDeny") == ["any"]
        assert values(text, "SocketBindAllow") == ["ipv4:tcp:50052"]
        words = values(text, "ExecStart")[0].split()
        assert words[words.index("-H") + 1] == SHARE.address

    def test_it_does_not_run_without_the_packet_filter(self, text: str) -> None:
        assert values(text, "Requires")[0] == "moehost-firewall.service"
        assert "moehost-firewall.service" in values(text, "After")[0]

    def test_it_sees_no_key_and_no_model(self, text: str) -> None:
        assert values(text, "InaccessiblePaths") == ["-/etc/moehost -/srv/models"]
        assert values(text, "LoadCredential") == []

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
    def test_systemd_understands_every_line(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "moehost-rpc-qwen.service"
        path.write_text(re.sub(r"^(Exec\w+=)/\S+", r"\1/bin/true", text, flags=re.MULTILINE))
        for each in ("gpu", "firewall"):
            (tmp_path / f"moehost-{each}.service").write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n")
        verify = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
        assert [line for line in verify.stderr.splitlines() if path.name in line] == []


class TestVariants:
    def test_a_server_with_workers_waits_for_them_and_talks_to_them_alone(self) -> None:
        on = main_node("epyc2", "epyc3")
        helpers = tuple(worker(epyc_9175f(1), f"epyc{n}", n) for n in (2, 3))
        plan = make(on.services[0], "/srv/q.gguf", HEADERS, epyc_9175f(1, 131072), "ik", workers=helpers)
        source = Source(on.services[0], plan, "/srv/q.gguf", "r", firewall.addresses(on, on.services[0]))
        text = source.text("0123456789abcdef")
        wait = "workers-answer 600 10.0.0.2:50052 10.0.0.3:50052"
        assert values(text, "ExecStartPre")[1] == f"/usr/local/libexec/moehost/{wait}"
        assert values(text, "IPAddressAllow") == ["localhost 10.0.0.2 10.0.0.3"]

    def test_without_gpus_there_are_no_devices(self) -> None:
        assert values(UNITS["cpu"], "PrivateDevices") == ["yes"]
        assert values(UNITS["cpu"], "DeviceAllow") == []
        assert "AF_NETLINK" not in values(UNITS["cpu"], "RestrictAddressFamilies")[0]

    def test_gpus_are_the_only_devices(self) -> None:
        assert values(UNITS["gpus"], "DevicePolicy") == ["closed"]
        assert values(UNITS["gpus"], "DeviceAllow") == ["char-nvidia* rw"]
        assert values(UNITS["gpus"], "PrivateDevices") == ["no"]

    def test_a_server_on_loopback_talks_to_nobody_else(self) -> None:
        assert values(UNITS["cpu"], "IPAddressDeny") == ["any"]
        assert values(UNITS["cpu"], "IPAddressAllow") == ["localhost"]

    def test_a_server_for_others_is_reached_by_them_on_its_port_alone(self) -> None:
        assert values(UNITS["open"], "IPAddressDeny") == ["any"]
        assert values(UNITS["open"], "IPAddressAllow") == [f"localhost {' '.join(PRIVATE)}"]
        assert values(UNITS["open"], "SocketBindDeny") == ["any"]
        assert values(UNITS["open"], "SocketBindAllow") == ["tcp:9000"]
        assert values(UNITS["open"], "ExecStartPost")[0].split()[1] == "http://127.0.0.1:9000"

    def test_a_machine_reaches_its_own_server_whoever_else_may(self) -> None:
        text = unit("llama.cpp", epyc_9175f(0), host="192.0.2.7", firewall={"allow_from": ["fd00::/8"]})
        assert values(text, "IPAddressAllow") == ["localhost 192.0.2.7 fd00::/8"]

    def test_without_a_firewall_a_server_for_others_is_reached_by_all(self) -> None:
        text = unit("llama.cpp", epyc_9175f(0), host="0.0.0.0", firewall={"policy": "off"})
        assert values(text, "IPAddressDeny") == values(text, "IPAddressAllow") == []

    def test_settings_arrive_in_their_directives(self) -> None:
        assert values(UNITS["open"], "MemoryMax") == ["700G"]
        assert values(UNITS["open"], "TimeoutStartSec") == ["750"]
        assert values(UNITS["open"], "ExecStartPost")[1].split()[2] == "90"

    def test_an_argument_with_a_blank_is_one_word(self) -> None:
        assert shlex.split(values(UNITS["gpus"], "ExecStart")[0])[-1] == "/srv/a b.jinja"


class TestRender:
    def test_a_variable_that_is_missing_is_an_error(self) -> None:
        with pytest.raises(UndefinedError, match="'mirror' is undefined"):
            render("ik_llama/suite.sources.j2", suite="forky")

    def test_an_attribute_that_is_missing_is_an_error(self) -> None:
        with pytest.raises(UndefinedError, match="has no attribute 'model'"):
            render("llama_server/llama-server.service.j2", service=object())

    def test_a_text_ends_with_its_line(self) -> None:
        assert render("llama_server/preflight.j2").endswith("\n")
