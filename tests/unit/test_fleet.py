"""How nodes are, in a row each: services, the gate, reboots, drift."""

from __future__ import annotations

from typing import Any

import pytest

from moehost import fleet, lock, settings
from moehost.fleet import Benched, Row, Serving
from moehost.rolling import Failure
from tests.fixtures.condition import CURRENT, UNIT
from tests.fixtures.fleet import SETTINGS, TINY, answer

UNIT_NAME = "llama-server-tiny.service"


def node(**more: Any) -> settings.Node:
    return settings.read({**SETTINGS, **more})


def units(**properties: str) -> str:
    text = UNIT.format(unit=UNIT_NAME)
    for key, value in properties.items():
        before = next(line for line in text.splitlines() if line.startswith(f"{key}="))
        text = text.replace(before, f"{key}={value}")
    return text


def test_a_healthy_node_passes():
    assert fleet.services(answer(), node(), is_drained=False) == {"tiny": Serving("ready")}
    assert fleet.services(answer(), node(), is_drained=True) == {"tiny": Serving("drained")}
    assert fleet.gate(answer(), node()) is None


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"units": ""}, f"{UNIT_NAME} is not on the node"),
        ({"units": units(ActiveState="failed")}, f"{UNIT_NAME} does not start"),
        (
            {"units": units(ActiveState="activating", SubState="start-post")},
            f"{UNIT_NAME} is on its way (start-post) and does not serve yet",
        ),
        ({"answers": f"{UNIT_NAME} 000\n"}, f"{UNIT_NAME} is active and does not answer (HTTP status 000)"),
        ({"answers": ""}, f"{UNIT_NAME} is active and does not answer (HTTP status none)"),
        (
            {"cards": f"{UNIT_NAME} CUDA0 holds 3 MiB, and at least 900 MiB of the model should be there\n"},
            f"{UNIT_NAME}: CUDA0 holds 3 MiB, and at least 900 MiB of the model should be there",
        ),
    ],
    ids=["absent", "failed", "starting", "mute", "without an address", "cards empty"],
)
@pytest.mark.parametrize("is_drained", [False, True])
def test_a_service_that_does_not_serve(texts: dict[str, str], says: str, is_drained: bool) -> None:
    # Drained or not: one that would not serve has failed.
    assert fleet.services(answer(**texts), node(), is_drained) == {"tiny": Serving("failed", says)}
    assert fleet.gate(answer(**texts), node()) == says


def test_one_that_was_restarted_serves():
    assert fleet.gate(answer(units=units(NRestarts="2")), node()) is None


def test_the_gate_wants_the_engine_that_was_wished():
    says = fleet.gate(answer(releases=f"current={CURRENT}\nnext=another\n"), node())
    assert says is not None
    assert says.startswith(f"another is there and {CURRENT} serves still")
    built = node(engine={"source": "git"})
    texts = answer() | {"stack.build": '{"commit": "1234"}'}
    assert fleet.gate(texts, built) == f"the engine that serves is of commit 1234, not {built.engine.commit}"
    texts["stack.build"] = f'{{"commit": "{built.engine.commit}"}}'
    assert fleet.gate(texts, built) is None
    assert fleet.gate(answer(), built) == f"the engine that serves is of commit none, not {built.engine.commit}"


def test_a_node_without_services_has_no_gate():
    assert fleet.gate(answer(units="", answers="", releases=""), settings.read({})) is None


def test_every_service_counts():
    two = node(services=[TINY, {**TINY, "name": "other", "port": 8081}])
    found = fleet.services(answer(), two, is_drained=False)
    assert {name: each.state for name, each in found.items()} == {"tiny": "ready", "other": "failed"}
    assert fleet.gate(answer(), two) == "llama-server-other.service is not on the node"


def test_a_reboot_that_is_owed():
    assert list(fleet.reboot(answer(), node())) == []
    (says,) = fleet.reboot(answer(reboot="1794600000 linux-image-amd64\n"), node())
    assert says.startswith("a reboot is owed for linux-image-amd64, since ")


def test_a_row_knows_what_is_known():
    row = fleet.known(Row("a"), answer(), node(), None, ())
    assert (row.services, row.reboot, row.drift) == ({"tiny": Serving("ready")}, [], None)
    texts = answer() | {"stack.kernel": "6.12\n"}
    locked = lock.of_node({key.removeprefix("stack."): text for key, text in texts.items() if "stack." in key})
    assert fleet.known(Row("a"), texts, node(), locked, ["a"]).drift == []
    row = fleet.known(Row("a"), texts | {"stack.kernel": "6.13\n"}, node(), locked, ["a"])
    assert row.drift == ["system kernel: 6.12 -> 6.13"]
    assert row.services == {"tiny": Serving("drained")}


def test_the_contract():
    row = Row(
        "a",
        "failed",
        Failure("gate", "no answer"),
        roles=[{"role": "Base", "duration_s": 0.5, "changed": ["x"], "failed": None}],
        services={"tiny": Serving("failed", "no answer")},
        bench={"tiny": Benched(12.5, 60.0)},
        reboot=[],
        drift=None,
        duration_s=3.5,
    )
    assert row.to_json() == {
        "outcome": "failed",
        "roles": [{"role": "Base", "duration_s": 0.5, "changed": ["x"], "failed": None}],
        "services": {"tiny": {"state": "failed", "says": "no answer"}},
        "bench": {"tiny": {"tok_s": 12.5, "age_s": 60.0}},
        "reboot": [],
        "drift": None,
        "duration_s": 3.5,
        "failed": {"step": "gate", "reason": "no answer"},
    }
    assert row.changed == ["Base"]


def test_those_that_failed_come_last():
    rows = [Row("a", "failed"), Row("b"), Row("c", "untouched"), Row("d"), Row("e", "failed")]
    assert [row.node for row in fleet.ordered(rows)] == ["b", "d", "c", "a", "e"]
