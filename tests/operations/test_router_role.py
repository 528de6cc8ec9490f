"""The router's operations: what is written, when it is restarted, reloaded and left alone, how it goes."""

import pytest

from moehost import router, settings
from roles.facts import FileStates, PathsThere
from roles.gateway.facts import UserKeys
from roles.llama_server.facts import ServiceState
from roles.operations import file_state
from roles.router import operations, wanted
from roles.router.facts import CONFIGURATION, ROOT_CERTIFICATE, UNIT, RouterState
from tests.operations.plain import play

SERVICE = {"name": "tiny", "model": {"name": "m", "source": "file:///srv/m.gguf"}, "parallel": 2}
NODES = {
    name: settings.read({"services": [SERVICE], "gateway": {"host": f"{name}.home.arpa", "port": 8443}})
    for name in ("epyc1", "epyc2")
}
NODE = settings.read({"router": {"host": "llm.home.arpa", "nodes": list(NODES)}})
MODELS = router.models(NODE.router, NODES)
PATHS = [f"/etc/moehost/router/nodes/{name}.crt" for name in NODES]
WELL = {"config": "current", "certificate": "good", "has_ipv6": "yes", "timer": "active", "answer": "200"}
RUNS = {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no", "port_holder": ""}
STANDS = "-----BEGIN CERTIFICATE-----\n"


class OtherHost:
    """A host of the inventory, as far as it is asked."""

    def __init__(self, says):
        self.connected, self._says = False, says

    def connect(self, show_errors):
        if self._says is None:
            raise OSError("it is away")
        self.connected = True

    def get_fact(self, _):
        return self._says


def kinds(commands):
    """What commands do, in a word or two each."""
    return [
        each["command"].split()[-1].rpartition("/")[2] if isinstance(each, dict) else each if isinstance(each, str)
        else " ".join([each[0], *(word for word in each[1] if isinstance(word, str))])
        for each in commands
    ]  # fmt: skip


def states(there):
    return lambda paths: {path: each for path, each in there.items() if path in paths}


class TestKnown:
    @pytest.fixture
    def run(self, monkeypatch):
        def run(there, says, data=None):
            hosts = {name: OtherHost(each) for name, each in zip(NODES, says, strict=True)}
            monkeypatch.setattr(operations, "inventory", type("Inventory", (), {"get_host": staticmethod(hosts.get)}))
            monkeypatch.setattr(operations, "routed", lambda _: NODES)
            monkeypatch.setattr(operations.settings, "read", lambda _: NODE if data is None else data)
            return play(operations.known, {FileStates: states(there)})

        return run

    def test_they_are_asked_wherever_the_run_is(self, run):
        written, _ = run({}, [STANDS, STANDS])
        assert [each["command"].split()[-1] for each in written] == PATHS

    def test_one_that_is_away_keeps_what_is_there(self, run):
        there = {path: file_state(STANDS) for path in PATHS}
        assert run(there, [None, STANDS])[0] == []
        assert run(there, ["", STANDS])[0] == []

    def test_a_host_that_is_none_only_waits(self, run):
        assert run({}, ["", ""], data=NODES["epyc1"]) == ([], ["this host is no router"])


class TestConfigured:
    def run(self, there=WELL, files=None):
        table = {RouterState: lambda **_: there, FileStates: states(files or {})}
        return play(operations.configured, table, node=NODE, models=MODELS)[0]

    def test_haproxy_finds_it_good_before_it_is_there(self):
        files = {path: file_state(STANDS) for path in PATHS}
        made, models, nodes, check, write = self.run({**WELL, "certificate": "old"}, files)
        assert made == "env NAME=DNS:llm.home.arpa /usr/local/libexec/moehost/router-certificate"
        assert '"tiny"' in models["_stdin"] and '"epyc2": 8443' in nodes["_stdin"]
        assert "haproxy -c" in check["command"]
        assert check["_stdin"] == write["_stdin"] == wanted.configuration(NODE, MODELS, True)
        assert CONFIGURATION not in check["command"]

    def test_a_node_whose_certificate_nobody_knows_gets_nothing(self):
        *_, write = self.run(files={PATHS[0]: file_state(STANDS)})
        assert "server epyc1 epyc1.home.arpa:8443 maxconn 2 " in write["_stdin"]
        assert "server epyc2" not in write["_stdin"]

    def test_the_second_run(self):
        texts = {CONFIGURATION: wanted.configuration(NODE, MODELS, True), **wanted.tables(MODELS)}
        files = {path: file_state(text) for path, text in texts.items()}
        assert self.run(files=files | {path: file_state(STANDS) for path in PATHS}) == []


class TestRunning:
    def run(self, there=WELL, state=RUNS, files=None):
        table = {
            RouterState: lambda **_: there,
            ServiceState: state,
            FileStates: states(files or {}),
            UserKeys: lambda **_: {"state": "active\n", "keys": "alice - a\n", "root": ""},
        }
        return play(operations.running, table, node=NODE, models=MODELS)

    @pytest.fixture
    def well(self):
        """State and files of a host that has its router."""
        written = [each for each in self.run()[0] if isinstance(each, dict)]
        texts = {each["command"].split()[-1].strip("'"): each["_stdin"] for each in written}
        unit = texts[f"/etc/systemd/system/{UNIT}"]
        generation = unit.partition("MOEHOST_GENERATION=")[2].partition("\n")[0]
        return {**RUNS, "generation": generation}, {path: file_state(text) for path, text in texts.items()}

    def test_a_fresh_host(self):
        commands, _ = self.run(there={"config": "none", "answer": "000"}, state={})
        assert kinds(commands)[3:] == [
            "systemctl daemon-reload",
            f"systemctl enable --quiet {UNIT}",
            f"asked_of_systemd {UNIT} restart",
            "systemctl enable --quiet --now moehost-router-leases.timer",
            "_answers",
        ]

    def test_one_that_is_well_is_left_alone(self, well):
        commands, noops = self.run(state=well[0], files=well[1])
        assert (commands, noops[-1]) == ([], f"{UNIT} answers as described")

    def test_other_files_or_keys_are_a_reload(self, well):
        commands, _ = self.run(there={**WELL, "config": "old"}, state=well[0], files=well[1])
        assert kinds(commands) == [f"asked_of_systemd {UNIT} reload", "_answers"]

    @pytest.mark.parametrize("change", [{"ActiveState": "inactive"}, {"generation": "another"}])
    def test_one_that_is_not_what_it_was_started_with_is_restarted(self, well, change):
        commands, _ = self.run(state={**well[0], **change}, files=well[1])
        assert kinds(commands) == [f"asked_of_systemd {UNIT} restart", "_answers"]

    def test_no_node_that_is_ready_is_no_failure_of_the_router(self, well):
        assert self.run(there={**WELL, "answer": "503"}, state=well[0], files=well[1])[0] == []


class TestGone:
    def run(self, there):
        return play(operations.gone, {PathsThere: lambda **_: there})[0]

    def test_its_unit_goes_last(self):
        unit = f"/etc/systemd/system/{UNIT}"
        commands = self.run([unit, CONFIGURATION, "moehost-router"])
        assert commands[0] == f"systemctl disable --quiet --now {UNIT} moehost-router-leases.timer"
        assert commands[1:] == [f"rm -rf {CONFIGURATION}", f"rm {unit} && systemctl daemon-reload"]

    def test_there_is_none(self):
        assert self.run([]) == []

    def test_what_users_trust_stays(self):
        kept = {"/etc/moehost/router/user-keys", ROOT_CERTIFICATE, "/etc/moehost/router/authority.key"}
        assert not kept & set(wanted.EVER)
