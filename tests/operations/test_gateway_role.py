"""The gateway's operations: what is written, when it is restarted, reloaded and left alone, how it goes."""

import pytest

from moehost import settings
from roles.facts import FileStates, PathsThere
from roles.gateway import facts, operations
from roles.gateway.facts import (
    CADDYFILE,
    ROOT_CERTIFICATE,
    Gateway,
    RootCertificate,
    UserKeys,
)
from roles.llama_server.facts import ServiceState
from roles.operations import file_state
from tests.operations.plain import play

NODE = settings.read(
    {
        "services": [{"name": "tiny", "model": {"name": "m", "source": "file:///srv/m.gguf"}}],
        "gateway": {"host": "llm.home.arpa", "port": 8443},
    }
)
UNIT = "/etc/systemd/system/moehost-gateway.service"
ROOT = "-----BEGIN CERTIFICATE-----\n"
WELL = {"binary": "1 2 3", "config": "current", "answer": "200"}
RUNS = {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no", "port_holder": ""}


def run(there=WELL, state=RUNS, files=None, users="alice - a\n", node=NODE, certificate=None):
    table = {
        Gateway: lambda **_: there,
        ServiceState: state,
        FileStates: lambda paths: {path: each for path, each in (files or {}).items() if path in paths},
        RootCertificate: ROOT,
        UserKeys: {"state": "active\n", "keys": users, "root": ROOT},
    }
    return play(operations.running, table, node=node, certificate=certificate)


def well():
    """State and files of a node that has its gateway."""
    text = next(each["_stdin"] for each in run(files={})[0] if isinstance(each, dict) and UNIT in each["command"])
    generation = text.partition("MOEHOST_GENERATION=")[2].partition("\n")[0]
    return {**RUNS, "generation": generation}, {UNIT: file_state(text), ROOT_CERTIFICATE: file_state(ROOT)}


def kinds(commands):
    """What commands do, in a word or two each."""
    return [
        each["command"].split()[-1].rpartition("/")[2] if isinstance(each, dict) else each if isinstance(each, str)
        else f"{each[0]} {each[1][0] if isinstance(each[1][0], str) else ''}".strip()
        for each in commands
    ]  # fmt: skip


class TestRunning:
    def test_a_fresh_node(self):
        commands, _ = run(there={"config": "old", "answer": "000"}, state={})
        assert kinds(commands) == [
            "moehost-gateway.service",
            "systemctl daemon-reload",
            "systemctl enable --quiet moehost-gateway.service",
            "asked_of_systemd moehost-gateway.service",
            "root.crt",
            "_answers",
        ]

    def test_one_that_is_well_is_left_alone(self):
        state, files = well()
        commands, noops = run(state=state, files=files)
        assert (commands, noops[-1]) == ([], "moehost-gateway.service answers as described")

    def test_other_files_or_keys_are_a_reload(self):
        state, files = well()
        commands, _ = run(there={**WELL, "config": "old"}, state=state, files=files)
        assert kinds(commands) == ["asked_of_systemd moehost-gateway.service", "_answers"]

    @pytest.mark.parametrize("change", [{"ActiveState": "inactive"}, {"generation": "another"}])
    def test_one_that_is_not_what_it_was_started_with_is_restarted(self, change):
        state, files = well()
        commands, _ = run(state={**state, **change}, files=files)
        assert kinds(commands) == ["asked_of_systemd moehost-gateway.service", "_answers"]

    def test_a_newer_caddy_is_another_generation(self):
        state, files = well()
        commands, _ = run(there={**WELL, "binary": "9 9 9"}, state=state, files=files)
        assert "asked_of_systemd moehost-gateway.service" in kinds(commands)

    def test_one_that_does_not_answer_is_waited_for(self):
        state, files = well()
        assert kinds(run(there={**WELL, "answer": "503"}, state=state, files=files)[0]) == ["_answers"]


class TestConfigured:
    def test_caddy_finds_it_good_before_it_is_there(self):
        commands, _ = play(operations.configured, {FileStates: {}}, node=NODE, certificate=None)
        check, write = commands
        assert "caddy validate" in check["command"]
        assert check["_stdin"] == write["_stdin"] == operations.caddyfile(NODE, None)
        assert CADDYFILE not in check["command"]

    def test_the_second_run(self):
        there = {CADDYFILE: file_state(operations.caddyfile(NODE, None))}
        assert play(operations.configured, {FileStates: there}, node=NODE, certificate=None)[0] == []


class TestMarked:
    def test_those_that_were_started_before(self):
        there = {operations.DROP_IN: file_state(operations.render("gateway/warm.conf.j2", warm=facts.WARM))}
        table = {FileStates: there, facts.Unmarked: ["llama-server-tiny.service"]}
        (mark,) = play(operations.marked, table, services=NODE.services)[0]
        assert mark.startswith("install -D /dev/null /run/moehost-warm/llama-server-tiny ;")
        assert mark.endswith("|| rm -f /run/moehost-warm/llama-server-tiny")
        assert play(operations.marked, {**table, facts.Unmarked: []}, services=NODE.services)[0] == []

    def test_a_fresh_node(self):
        commands, _ = play(operations.marked, {FileStates: {}, facts.Unmarked: []}, services=NODE.services)
        assert "ExecStartPost=+/usr/bin/install -D /dev/null /run/moehost-warm/%N" in commands[0]["_stdin"]
        assert commands[1] == "systemctl daemon-reload"


class TestGone:
    def test_keys_and_authority_stay(self):
        commands, _ = play(operations.gone, {PathsThere: [facts.ACCOUNT, UNIT, CADDYFILE]})
        assert commands == [
            "systemctl disable --quiet --now moehost-gateway.service",
            f"rm -rf {CADDYFILE}",
            f"rm {UNIT} && systemctl daemon-reload",
        ]
        assert facts.OWN_LIST not in " ".join(commands)
        assert "/var/lib" not in " ".join(commands)

    def test_a_run_that_was_cut_off(self):
        assert play(operations.gone, {PathsThere: [CADDYFILE]})[0] == [f"rm -rf {CADDYFILE}"]

    @pytest.mark.parametrize("there", [[], [facts.ACCOUNT]])
    def test_without_one(self, there):
        assert play(operations.gone, {PathsThere: there}) == ([], ["there is no gateway"])
