"""A reboot by a deploy: it is over when the node answers with another boot, whatever happens to connections."""

import fcntl
from types import SimpleNamespace

import pytest
from pyinfra.context import ctx_host, ctx_state
from pyinfra_testing.util import FakeState

from moehost.deploying import TURNS
from roles import operations
from tests.operations.plain import Host


class Rebooting(Host):
    """A node whose boot is this at each try, or what a connection to it ends with."""

    connected = True
    connector_data = SimpleNamespace()

    def __init__(self, *boots):
        super().__init__({})
        self.boots, self.tries = list(boots), 0

    def disconnect(self):
        pass

    def connect(self, show_errors):
        self.tries += 1

    def run_shell_command(self, command, **_):
        said = self.boots.pop(0) if len(self.boots) > 1 else self.boots[0]
        if isinstance(said, Exception):
            raise said
        return bool(said), SimpleNamespace(stdout=said)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Time passes by sleeping only."""
    now = [0.0]
    monkeypatch.setattr(operations, "clear_askpass_cache", lambda host: None)
    monkeypatch.setattr(operations.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(operations.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def run(node):
    """Whether each step succeeded."""
    with ctx_state.use(FakeState()), ctx_host.use(node):
        first, command, last = operations.rebooted("because")
        assert "reboot" in command
        return first.function(None, node, *first.args), last.function(None, node, *last.args)


def test_it_waits_for_another_boot():
    node = Rebooting("one\n", "one\n", "", OSError("reset"), "two\n")
    assert run(node) == (True, True)
    assert node.tries == 4


def test_a_node_that_does_not_come_back(clock):
    node = Rebooting("one\n", OSError("refused"))
    assert run(node) == (True, False)
    assert clock[0] >= operations.REBOOT_S
    assert "does not answer 30 minutes after its reboot" in node.lines[0]


def test_a_node_that_says_nothing_is_not_rebooted():
    node = Rebooting("")
    with ctx_state.use(FakeState()), ctx_host.use(node):
        first = next(operations.rebooted("because"))
        assert first.function(None, node, *first.args) is False


def test_machines_with_processes_of_their_own_take_turns(monkeypatch, tmp_path, clock):
    monkeypatch.setenv(TURNS, str(tmp_path / "turns"))
    state = FakeState()
    state.is_executing = True
    with ctx_state.use(state), ctx_host.use(Rebooting("one\n")), (tmp_path / "turns").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        # The other one is through after a minute.
        monkeypatch.setattr(operations.time, "sleep", lambda seconds: slept(seconds))

        def slept(seconds):
            clock[0] += seconds
            if clock[0] >= 60:
                fcntl.flock(other, fcntl.LOCK_UN)

        steps = operations.rebooted("because")
        next(steps)
        assert clock[0] == 60
        # It is this one's turn until it is back.
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert len(list(steps)) == 2
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
