"""The regular inspection of the models: units, timer, and a failure that is over."""

import pytest

from moehost import settings
from roles.facts import FileStates
from roles.models.facts import Inspection
from roles.models.verification import TIMER, UNIT, UNITS, inspected, units
from roles.operations import file_state
from tests.operations.plain import play

WAITS = {"enabled": "enabled", "active": "active", "failed": "inactive", "reload": "no", "damaged": "no"}
NONE = {"enabled": "", "active": "inactive", "failed": "inactive", "reload": "no", "damaged": "no"}


def run(how_often="monthly", there=WAITS, installed="monthly"):
    """The commands and noops for a node with such units and such a timer."""
    files = {path: file_state(text) for path, text in units("/srv/models", installed).items()} if installed else {}
    node = settings.read({"verify_models": how_often})
    return play(inspected, {Inspection: there, FileStates: files}, node=node)


def words(commands):
    return [each["command"].split("&&")[-1].strip() if isinstance(each, dict) else each for each in commands]


def test_nothing_is_to_be_done():
    commands, noops = run()
    assert commands == []
    assert noops[-1] == "models are inspected monthly"


def test_a_fresh_node():
    commands = words(run(there=NONE, installed=None)[0])
    assert [each.split("/")[-1] for each in commands[:2]] == [UNIT, TIMER]
    assert commands[2:] == ["systemctl daemon-reload", f"systemctl enable --quiet --now {TIMER}"]


def test_another_calendar_restarts_the_timer():
    commands = words(run("weekly")[0])
    assert commands[0].endswith(TIMER)
    assert commands[1:] == ["systemctl daemon-reload", f"systemctl restart {TIMER}"]


def test_a_reload_that_a_broken_run_owes():
    assert run(there=WAITS | {"reload": "yes"})[0][0] == "systemctl daemon-reload"


def test_a_timer_that_was_stopped_is_started():
    assert run(there=WAITS | {"active": "inactive"})[0] == [f"systemctl enable --quiet --now {TIMER}"]


@pytest.mark.parametrize(("damaged", "commands"), [("no", [f"systemctl reset-failed {UNIT}"]), ("yes", [])])
def test_a_failure_is_forgotten_when_no_model_is_damaged(damaged, commands):
    assert run(there=WAITS | {"failed": "failed", "damaged": damaged})[0] == commands


def test_not_at_all():
    commands = run("off")[0]
    assert commands[0].startswith(f"systemctl disable --quiet --now {TIMER}")
    assert commands[-1] == f"rm -f {UNITS}/{UNIT} {UNITS}/{TIMER} && systemctl daemon-reload"
    assert run("off", there=NONE, installed=None) == ([], ["models are not inspected"])


def test_the_plan_of_a_node_where_nothing_can_be_asked_yet():
    assert run(there={}, installed=None)[0]
