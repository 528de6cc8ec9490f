"""When the services come to another release of the engine, and what the node is told to do."""

import json
from pathlib import Path

import pytest

from moehost import settings, switch
from moehost.speed import PUBLISHED
from roles.facts import Machine
from roles.ik_llama.facts import Releases
from roles.llama_server.facts import (
    ArgumentsProbe,
    EngineContract,
    EngineHelp,
    Inputs,
    ModelHeaders,
    ServiceState,
    Switch,
)
from roles.llama_server.switch import switched
from roles.models.facts import StoredModel
from tests.fixtures.planned_node import CONTRACT, HEADERS, MANIFEST, TAKEN, machine
from tests.operations.plain import in_turn, play

RUNNING = {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no", "generation": "old"}
THERE = {**Releases.default(), "releases": ["new", "old"], "current": "old", "next": "new"}
IDLE = {"active": False, "lines": [], "ended": False}


def run(releases=(THERE,), switching=IDLE, contract=CONTRACT, state=RUNNING, **engine):
    model = {"name": "m", "source": "file:///srv/m.gguf"}
    node = settings.read({"services": [{"name": "tiny", "model": model, "context": 8192}], "engine": engine})
    facts = {
        Releases: in_turn(*releases),
        Switch: switching,
        StoredModel: MANIFEST if contract else None,
        ModelHeaders: HEADERS,
        Machine: machine(0),
        EngineContract: lambda engine: contract and {**contract, "release": "new"},
        EngineHelp: contract.get("help"),
        ServiceState: state,
        Inputs: lambda engine, model_dir, keys: f"releases/{Path(engine).name}",
        ArgumentsProbe: TAKEN,
    }
    return play(switched, facts, node=node, constants=PUBLISHED)


def test_nothing_is_next():
    commands, noops = run([{**THERE, "next": "old"}])
    assert (commands, noops) == ([], ["old is current and next"])


def test_the_plan_of_a_node_without_a_model():
    commands, _ = run(contract={})
    assert commands == [
        "test -e /opt/moehost/engine/next/bin/llama-server -a -e /srv/models/m/manifest.json -a "
        "! -e /srv/models/m/damaged.json || "
        "{ echo /opt/moehost/engine/next or /srv/models/m is not there or damaged: deploy again >&2; exit 1; }"
    ]


def test_the_node_is_told_all_that_is_needed():
    commands, _ = run(drain_s=7, canary_share=0.5)
    program, job, start, watch = commands
    assert program["_stdin"] == Path(switch.__file__).read_text()
    told = switch.Job.from_json(json.loads(job["_stdin"]))
    assert (told.old, told.new, told.drain_s, told.canary_share) == ("old", "new", 7, 0.5)
    (service,) = told.services
    assert (service.unit, service.address) == ("llama-server-tiny.service", "127.0.0.1:8080")
    assert "\nExecStart=/opt/moehost/engine/releases/new/bin/llama-server -m" in service.trial
    final = service.contents["/etc/systemd/system/llama-server-tiny.service"]
    assert "\nExecStart=/opt/moehost/engine/current/bin/llama-server -m" in final
    # What is tried is what stays: the process is recognised afterwards and not started again.
    assert f"MOEHOST_GENERATION={service.generation}\n" in service.trial
    assert f"MOEHOST_GENERATION={service.generation}\n" in final
    assert json.loads(service.contents["/etc/moehost/tiny/plan.json"])["argv"]
    assert "--unit=moehost-switch.service" in start
    assert watch[0] == "_watch"


def test_a_switch_that_is_at_work_is_never_stopped():
    commands, _ = run([THERE, {**THERE, "current": "new"}], switching={**IDLE, "active": True})
    assert [command[0] for command in commands] == ["_watch"]


def test_one_that_went_back_is_begun_again():
    commands, _ = run(switching={**IDLE, "active": True})
    assert commands[0][0] == "_watch"
    assert "--unit=moehost-switch.service" in str(commands[1:])


REFUSED = {
    "a flag that it lacks": (
        {"contract": {**CONTRACT, "help": CONTRACT["help"].replace("--jinja", "--ginja")}},
        "new does not become current, old serves on: services[0]: llama.cpp 0.7.0 (build 11669, commit Debian) does "
        "not know --jinja (did you mean --ginja?); see server_args",
    ),
    "a port that another program has": (
        {"state": {**RUNNING, "port_holder": '"python3",pid=812'}},
        "new does not become current, old serves on: services[0].port: 8080 is taken by python3 (pid 812); choose "
        "another or stop that program",
    ),
}


@pytest.mark.parametrize(("state", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_is_touched(state, reason):
    ((function, (said,), _),), _ = run(**state)
    assert function == "_refused"
    assert said.startswith(reason)
