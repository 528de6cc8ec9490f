"""The gate before services with cards: when it is written, passed, looked through again, and left alone."""

import pytest

from moehost import settings
from roles.facts import FileStates
from roles.gpu_gate.facts import Gate
from roles.gpu_gate.operations import gate
from roles.operations import file_state
from tests.operations.plain import play

CARD = "/sys/bus/pci/devices/0000:{}:00.0/vendor\n"
TWO = CARD.format("41") + CARD.format("c1")
PROGRAM, UNIT = "/usr/local/libexec/moehost/gpu-ready", "/etc/systemd/system/moehost-gpu.service"
RUNS = "active\nenabled\n"


def run(bus=TWO, state=RUNS, ready="2\n", answering=2, files=None, **nvidia):
    facts = {
        Gate: {"cards": bus, "state": state, "ready": ready, "answering": "GPU 0: a card\n" * answering},
        FileStates: lambda paths: {path: each for path, each in (files or {}).items() if path in paths},
    }
    return play(gate, facts, node=settings.read({"nvidia": nvidia}))


def written(commands):
    return {each["command"].split()[-1]: each["_stdin"] for each in commands if isinstance(each, dict)}


def there(**nvidia):
    """The files of a node whose gate is as wanted."""
    texts = written(run(state="inactive\n", ready="", **nvidia)[0])
    return {PROGRAM: file_state(texts[PROGRAM], "755"), UNIT: file_state(texts[UNIT])}


def test_a_machine_without_a_card_has_no_gate():
    assert run(bus="", state="inactive\nnot-found\n", ready="") == ([], ["no NVIDIA card in this machine: no gate"])


def test_a_fresh_node():
    commands, _ = run(state="inactive\nnot-found\n", ready="")
    texts = written(commands)
    assert list(texts) == [PROGRAM, UNIT]
    assert f"\nExecStart={PROGRAM} 2 120\n" in texts[UNIT]
    assert commands[2:4] == ["systemctl daemon-reload", "systemctl enable --quiet moehost-gpu.service"]
    assert [each[0] for each in commands[4:]] == ["_passed"]


def test_cards_that_are_ready_are_left_alone():
    watts = {"power_limit_w": [300]}
    for commands, noops in (run(files=there()), run(files=there(**watts), ready="2 300\n", **watts)):
        assert (commands, noops[-1]) == ([], "2 card(s) ready")


def test_another_power_limit_is_set_without_a_stop():
    wish = {"power_limit_w": [300, 450]}
    commands, _ = run(files=there(), **wish)
    assert f"\nExecReload={PROGRAM} 2 120 300 450\n" in written(commands)[UNIT]
    assert commands[-1][0] == "_passed"


@pytest.mark.parametrize(
    ("state", "ready"),
    [("failed\nenabled\n", ""), (RUNS, ""), (RUNS, "1\n")],
    ids=["failed", "after a boot", "fewer"],
)
def test_a_gate_that_was_not_passed_is_passed_again(state, ready):
    commands, _ = run(state=state, ready=ready, files=there())
    assert [each[0] for each in commands] == ["_passed"]


def test_a_card_that_fell_off_the_bus_since_then_is_seen():
    commands, _ = run(answering=1, files=there())
    assert [each[0] for each in commands] == ["_passed"]


def test_a_gate_that_would_not_come_back_at_boot_is_enabled():
    commands, _ = run(state="active\ndisabled\n", files=there())
    assert commands == ["systemctl enable --quiet moehost-gpu.service"]


def test_the_number_of_cards_is_the_owners():
    commands, _ = run(bus=CARD.format("41"), state="inactive\n", ready="", cards=2)
    assert f"\nExecStart={PROGRAM} 2 120\n" in written(commands)[UNIT]


def test_limits_that_are_for_other_cards_are_refused():
    ((name, (reason,), _),), _ = run(power_limit_w=[300, 300, 300])
    assert name == "_refused"
    assert reason == "nvidia.power_limit_w: has 3 values for 2 card(s); write one for all, or one for each"
