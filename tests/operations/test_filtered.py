"""The packet filter: installed, tried, kept, loaded anew where it was lost, taken away; and who gets back in."""

from types import SimpleNamespace

import pytest
from pyinfra.context import ctx_host, ctx_state
from pyinfra_testing.util import FakeState

from moehost import firewall, settings
from roles.facts import FileStates
from roles.firewall import operations
from roles.firewall.facts import NAME, PROGRAM, RULES, UNIT, Access, Filter
from roles.firewall.operations import filtered, trial
from roles.operations import file_state, render
from tests.operations.plain import Host, in_turn, play

SERVICE = {"name": "tiny", "host": "0.0.0.0", "model": {"name": "m", "source": "file:///srv/m.gguf"}}
CLOSED = {"firewall": {"policy": "closed", "ssh_from": ["192.168.1.0/24"], "confirm_s": 20}}
ACCESS = {
    "accounts": "moehost:996\n",
    "listening": 'LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=7,fd=3))\n',
    "sockets": "",
    "connection": "192.168.1.9 50000 192.168.1.7 22\n",
}
NOTHING = {"nft": "", "files": "", "unit": "", "table": "", "kept": "", "trying": ""}
RUNS = "ActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=no\n"


def wanted(node):
    """The files of a node whose filter is as described, by path."""
    return {
        RULES: (render("firewall/rules.nft.j2", **firewall.values(node, firewall.parse(ACCESS))), "644"),
        UNIT: (render("firewall/moehost-firewall.service.j2", nft="/usr/sbin/nft", path=RULES), "644"),
        PROGRAM: (trial(), "755"),
    }


def whole(node, **changed):
    """The fact of a node whose filter is as described, but for what is changed."""
    lines = [" ".join([*file_state(text, mode), path]) for path, (text, mode) in wanted(node).items()]
    loaded = {"table": "table inet moehost {}\n", "kept": "table inet moehost {}\n"}
    return NOTHING | {"nft": "/usr/sbin/nft\n", "files": "\n".join(lines), "unit": RUNS, **loaded, **changed}


def run(described, *there, access=ACCESS):
    node = settings.read(described)
    facts = {Filter: in_turn(*(each(node) if callable(each) else each for each in there)), Access: access}
    return play(filtered, facts | {FileStates: lambda paths: {}}, node=node)


def spoken(commands):
    """The commands, each as a word or two."""
    found = []
    for each in commands:
        text = each["command"] if isinstance(each, dict) else each if isinstance(each, str) else each[0]
        found.append(" ".join(text.split()[:2]) if text.startswith(PROGRAM) else text)
    return found


TRIED = [f"{PROGRAM} try", "_reached_anew", f"{PROGRAM} keep"]
ENABLED = f"systemctl enable --quiet --now {NAME}"


class TestNoTable:
    @pytest.mark.parametrize(
        "described",
        [{}, {"services": [SERVICE | {"host": "127.0.0.1"}]}, {"services": [SERVICE], "firewall": {"policy": "off"}}],
    )
    def test_nothing_is_installed_or_asked(self, described):
        # Not even who may get in is asked.
        commands, noops = run(described, NOTHING, access=None)
        assert (commands, noops) == ([], ["nothing listens beyond loopback: no packet filter"])

    def test_one_that_is_no_longer_wanted_is_taken_away(self):
        node = settings.read(CLOSED)
        commands, _ = run({}, whole(node))
        assert spoken(commands) == [
            f"systemctl disable --quiet --now {NAME}",
            f"rm -f {UNIT} && systemctl daemon-reload",
            "if nft list table inet moehost >/dev/null 2>&1; then nft delete table inet moehost; fi",
            f"rm -f {RULES} {PROGRAM}",
        ]

    def test_a_timer_does_not_bring_it_back(self):
        (stopped, deleted), _ = run({}, NOTHING | {"table": "table inet moehost {}\n", "trying": "before.nft\n"})
        assert stopped.startswith("systemctl stop moehost-firewall-revert.timer")
        assert "nft delete table inet moehost" in deleted


class TestInstalled:
    def test_a_node_that_has_nothing(self):
        commands, _ = run(CLOSED, NOTHING | {"nft": "/usr/sbin/nft\n"}, NOTHING)
        program, unit, reloaded, *rest = spoken(commands)
        assert program.endswith(PROGRAM)
        assert unit.endswith(UNIT)
        assert reloaded == "systemctl daemon-reload"
        assert rest == [*TRIED, ENABLED]

    def test_rules_travel_over_standard_input_and_have_their_time(self):
        (tried, reached, _), _ = run(CLOSED, lambda node: whole(node, table=""))
        assert tried["command"] == f"{PROGRAM} try 20"
        assert tried["_stdin"] == wanted(settings.read(CLOSED))[RULES][0]
        assert tried["_timeout"] == 20
        assert reached[1] == [20]

    def test_a_second_run_changes_nothing(self):
        for described in (CLOSED, {"services": [SERVICE]}):
            assert run(described, whole) == ([], ["the packet filter is as described"])

    @pytest.mark.parametrize(
        "changed",
        [{"table": ""}, {"table": "table inet moehost { chain x {} }\n"}, {"trying": "before.nft\n"}],
        ids=["flushed by somebody", "changed by somebody", "of a deploy that was killed"],
    )
    def test_rules_that_are_not_loaded_as_kept_are_tried_again(self, changed):
        commands, _ = run(CLOSED, lambda node: whole(node, **changed))
        assert spoken(commands) == TRIED

    @pytest.mark.parametrize("state", ["ActiveState=inactive\nUnitFileState=enabled\n", "ActiveState=active\n", ""])
    def test_rules_count_at_the_next_boot(self, state):
        commands, _ = run(CLOSED, lambda node: whole(node, unit=state))
        assert spoken(commands) == [ENABLED]

    def test_systemd_reads_a_unit_that_it_has_not_read(self):
        unit = RUNS.replace("Reload=no", "Reload=yes")
        commands, _ = run(CLOSED, lambda node: whole(node, unit=unit), whole)
        assert commands == ["systemctl daemon-reload"]

    def test_who_would_be_locked_out_is_refused_before_anything_is_touched(self):
        access = ACCESS | {"connection": "10.88.0.1 50000 10.88.0.2 22\n"}
        ((name, (reason,), _),), _ = run(CLOSED, NOTHING, access=access)
        assert name == "_refused"
        assert reason.startswith("firewall.ssh_from: this deploy's own SSH connection comes from 10.88.0.1, which")


class Cut(Host):
    """A node to which these tries to connect end so."""

    connector_data = SimpleNamespace()
    connected = True

    def __init__(self, *tries):
        super().__init__({})
        self.tries, self.disconnected = list(tries), 0

    def disconnect(self):
        self.connected, self.disconnected = False, self.disconnected + 1

    def connect(self, show_errors):
        said = self.tries.pop(0) if len(self.tries) > 1 else self.tries[0]
        if isinstance(said, Exception):
            raise said
        self.connected = said

    def run_shell_command(self, command, **_):
        return True, None


class TestReachedAnew:
    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch):
        """Time passes by sleeping only."""
        now = [0.0]
        monkeypatch.setattr(operations, "clear_askpass_cache", lambda host: None)
        monkeypatch.setattr(operations.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(operations.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def reached(self, node, confirm_s=10):
        with ctx_state.use(FakeState()), ctx_host.use(node):
            return operations._reached_anew(None, node, confirm_s)

    @pytest.mark.parametrize("tries", [[True], [OSError("refused"), False, True]])
    def test_a_connection_that_comes_through(self, tries):
        node = Cut(*tries)
        assert self.reached(node)
        assert node.disconnected == len(tries)

    @pytest.mark.parametrize("end", [OSError("timed out"), False])
    def test_the_old_connection_proves_nothing(self, end):
        node = Cut(end)
        assert self.reached(node) is False
        assert node.lines == [
            "firewall: no new connection comes through the new rules; the rules from before are back in 3 s"
        ]
