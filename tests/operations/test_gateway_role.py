"""The gateway's operations: what is written, when it is restarted, reloaded and left alone, how it goes."""

import pytest
from pyinfra.facts.deb import DebPackages

from moehost import settings
from roles.facts import FileStates, MissingPackages
from roles.gateway import facts, operations
from roles.gateway.facts import (
    CADDYFILE,
    OWNERS_LIST,
    ROOT_CERTIFICATE,
    Gateway,
    GatewayParts,
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
            "_asked_of_systemd restart",
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
        assert kinds(commands) == ["_asked_of_systemd reload", "_answers"]

    @pytest.mark.parametrize("change", [{"ActiveState": "inactive"}, {"generation": "another"}])
    def test_one_that_is_not_what_it_was_started_with_is_restarted(self, change):
        state, files = well()
        commands, _ = run(state={**state, **change}, files=files)
        assert kinds(commands) == ["_asked_of_systemd restart", "_answers"]

    def test_a_newer_caddy_is_another_generation(self):
        state, files = well()
        commands, _ = run(there={**WELL, "binary": "9 9 9"}, state=state, files=files)
        assert "_asked_of_systemd restart" in kinds(commands)

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


class TestPort:
    def test_of_another_program(self):
        state = {**RUNS, "port_holder": '"nginx",pid=77'}
        ((_, (reason,), _),) = play(operations.port_is_free, {ServiceState: state}, port=443)[0]
        assert reason == "gateway.port: 443 is taken by nginx (pid 77); choose another or stop that program"

    @pytest.mark.parametrize("state", [{}, RUNS])
    def test_free_or_its_own(self, state):
        assert play(operations.port_is_free, {ServiceState: state}, port=443)[0] == []


class TestCaddy:
    def test_its_own_service_does_not_start(self):
        commands, _ = play(operations.caddy, {MissingPackages: ["caddy"], DebPackages: {}})
        assert commands[0] == "systemctl mask --quiet caddy.service"
        assert "install" in commands[-1]

    def test_one_that_is_there_is_its_owners(self):
        assert play(operations.caddy, {MissingPackages: []}) == ([], ["installed: caddy"])


def test_the_account():
    text = operations.render("gateway/sysusers.conf.j2")
    there = {operations.SYSUSERS: file_state(text)}
    assert play(operations.account, {FileStates: there, GatewayParts: [facts.ACCOUNT]})[0] == []
    commands, _ = play(operations.account, {FileStates: {}, GatewayParts: []})
    assert commands[-1] == "systemd-sysusers /etc/sysusers.d/moehost-gateway.conf"


class TestHandedOver:
    def run(self, text, there):
        facts = {FileStates: there}
        return play(operations.handed_over, facts, contents={OWNERS_LIST: text}, mode="600", owner="root:root")[0]

    def test_it_comes_stays_and_goes(self):
        there = {OWNERS_LIST: file_state("a\n", "600")}
        assert self.run(None, {}) == self.run("a\n", there) == []
        assert self.run("a\n", {})[0]["_stdin"] == "a\n"
        assert self.run("b\n", there)[0]["_stdin"] == "b\n"
        assert self.run(None, there) == [f"rm {OWNERS_LIST}"]

    def test_others_may_read_it(self):
        assert self.run("a\n", {OWNERS_LIST: file_state("a\n", "644")})[0]["_stdin"] == "a\n"


class TestGone:
    def test_keys_and_authority_stay(self):
        commands, _ = play(operations.gone, {GatewayParts: [facts.ACCOUNT, UNIT, CADDYFILE]})
        assert commands == [
            "systemctl disable --quiet --now moehost-gateway.service",
            f"rm -rf {CADDYFILE}",
            f"rm {UNIT} && systemctl daemon-reload",
        ]
        assert facts.OWN_LIST not in " ".join(commands)
        assert "/var/lib" not in " ".join(commands)

    def test_a_run_that_was_cut_off(self):
        assert play(operations.gone, {GatewayParts: [CADDYFILE]})[0] == [f"rm -rf {CADDYFILE}"]

    @pytest.mark.parametrize("there", [[], [facts.ACCOUNT]])
    def test_without_one(self, there):
        assert play(operations.gone, {GatewayParts: there}) == ([], ["there is no gateway"])
