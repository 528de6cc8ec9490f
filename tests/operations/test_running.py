"""How a service comes to run as described, from every state that a node may be in."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyinfra.context import ctx_host
from pyinfra.facts.files import FileContents

from moehost import settings
from moehost.plan import make
from moehost.process import Process
from moehost.speed import PUBLISHED
from roles.facts import FileStates, Machine
from roles.llama_server import operations
from roles.llama_server.facts import (
    ArgumentsProbe,
    EngineContract,
    EngineHelp,
    Inputs,
    ModelHeaders,
    Rehearsal,
    ServerProcess,
    ServiceState,
    VramUsed,
)
from roles.llama_server.operations import running
from roles.models.facts import StoredModel
from tests.fixtures.planned_node import CONTRACT, HEADERS, MANIFEST, TAKEN, machine
from tests.operations.plain import Host, in_turn, play, sha256
from tests.unit.full_size import as_set, qwen35_397b
from tests.unit.machines import epyc_9175f, with_numa_nodes
from tests.unit.test_process import texts

UNIT, PLAN = "/etc/systemd/system/llama-server-tiny.service", "/etc/moehost/tiny/plan.json"
INACTIVE = {"ActiveState": "inactive", "UnitFileState": "", "NeedDaemonReload": "no", "generation": ""}
ENABLE = "systemctl enable --quiet llama-server-tiny.service"
RESTART = (
    "systemctl reset-failed llama-server-tiny.service 2>/dev/null; "
    "systemctl restart --no-block llama-server-tiny.service"
)
RELOAD = "systemctl daemon-reload"


def settings_of(**more):
    model = {"name": "m", "source": "file:///srv/m.gguf"}
    return settings.read({"services": [{"name": "tiny", "model": model, "context": 8192, **more}]})


def service(**more):
    return settings_of(**more).services[0]


def run(*states, contract=CONTRACT, probe=TAKEN, inputs="engine\nmodel\nkeys", files=None, cards=0, **more):
    """The commands and noops for a node whose unit is in these states, one after the other."""
    facts = {
        StoredModel: MANIFEST if contract else None,
        ModelHeaders: HEADERS,
        Machine: machine(cards),
        FileContents: more.pop("before", None),
        EngineContract: contract,
        EngineHelp: contract.get("help"),
        ServiceState: in_turn(*states),
        Inputs: inputs,
        ArgumentsProbe: probe,
        Rehearsal: more.pop("rehearsal", None),
        FileStates: lambda paths: {path: files[path] for path in paths if path in (files or {})},
    }
    arguments = {"node": settings_of(**more), "service": service(**more), "index": 3, "constants": PUBLISHED}
    return play(running, facts, **arguments)


def named(commands):
    """Commands by what they are for: files by their path, functions by their name."""
    names = []
    for command in commands:
        match command:
            case {"command": text}:
                names.append(text.split()[-1])
            case [function, *_]:
                names.append(function)
            case text:
                names.append(text)
    return names


@pytest.fixture(scope="module")
def described():
    """The files and the generation of the service as it should be."""
    (unit, plan, *_), _ = run(INACTIVE)
    generation = unit["_stdin"].partition("MOEHOST_GENERATION=")[2].splitlines()[0]
    files = {path: [sha256(each["_stdin"]), "644", "root:root"] for path, each in ((UNIT, unit), (PLAN, plan))}
    runs = {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no", "generation": generation}
    return SimpleNamespace(unit=unit["_stdin"], plan=json.loads(plan["_stdin"]), files=files, runs=runs)


def test_a_fresh_node():
    commands, _ = run(INACTIVE)
    assert named(commands) == [UNIT, PLAN, ENABLE, RESTART, "_wait_until_ready"]


def test_the_plan_of_a_node_where_nothing_is_installed_yet():
    commands, _ = run({}, contract={}, inputs="", probe=None)
    assert commands == [
        "test -e /opt/moehost/engine/current/bin/llama-server -a -e /srv/models/m/manifest.json -a "
        "! -e /srv/models/m/damaged.json || "
        "{ echo /opt/moehost/engine/current or /srv/models/m is not there or damaged: deploy again >&2; exit 1; }"
    ]


def test_a_service_that_runs_as_described_is_left_alone(described):
    commands, noops = run(described.runs, files=described.files, probe=None)
    assert commands == []
    assert noops[-1] == "llama-server-tiny.service runs as planned"


def test_other_settings_restart_it(described):
    old = described.runs | {"generation": "0123456789abcdef"}
    commands, _ = run(old, old | {"NeedDaemonReload": "yes"})
    assert named(commands) == [UNIT, PLAN, RELOAD, RESTART, "_wait_until_ready"]


def test_a_run_that_was_cut_off_after_the_files_restarts_it(described):
    old = described.runs | {"generation": "0123456789abcdef", "NeedDaemonReload": "yes"}
    commands, _ = run(old, files=described.files)
    assert named(commands) == [RELOAD, RESTART, "_wait_until_ready"]


def test_a_run_that_was_cut_off_while_it_waited_waits_again(described):
    commands, _ = run(described.runs | {"ActiveState": "activating"}, files=described.files)
    assert named(commands) == ["_wait_until_ready"]


@pytest.mark.parametrize("state", ["inactive", "failed"])
def test_a_service_that_does_not_run_is_started(described, state):
    dead = described.runs | {"ActiveState": state, "generation": ""}
    commands, _ = run(dead, files=described.files)
    assert named(commands) == [RESTART, "_wait_until_ready"]


def test_a_service_that_would_not_come_back_at_boot_is_enabled(described):
    commands, _ = run(described.runs | {"UnitFileState": "disabled"}, files=described.files)
    assert named(commands) == [ENABLE]


def test_a_unit_that_was_edited_by_hand_is_put_right_without_a_restart(described):
    edited = {**described.files, UNIT: [sha256("edited"), "644", "root:root"]}
    commands, _ = run(described.runs, described.runs | {"NeedDaemonReload": "yes"}, files=edited)
    assert named(commands) == [UNIT, RELOAD]


@pytest.mark.parametrize("inputs", ["engine 2\nmodel\nkeys", "engine\nmodel 2\nkeys", "engine\nmodel\nkeys 2"])
def test_another_engine_model_or_key_restarts_it(described, inputs):
    commands, _ = run(described.runs, files=described.files, inputs=inputs)
    assert RESTART in commands


def test_the_generation_is_in_the_unit_and_does_not_depend_on_itself(described):
    again, _ = run(INACTIVE)
    assert again[0]["_stdin"] == described.unit
    assert len(described.runs["generation"]) == 16


def test_the_plan_holds_the_command_line_of_the_unit(described):
    argv = described.plan["argv"]
    assert described.plan["engine"] == "llama.cpp 0.7.0 (build 11669, commit Debian)"
    assert f"\nExecStart=/opt/moehost/engine/current/bin/llama-server {' '.join(argv)}\n" in described.unit


def test_the_dialect_is_that_of_the_engine_that_is_there():
    help_text = (Path(__file__).parents[1] / "fixtures/help/ik_llama.cpp-8337e4cd-cpu.txt").read_text()
    contract = {**CONTRACT, "build": '{"dialect": "ik"}', "version": "version: 4840 (8337e4cd3)", "help": help_text}
    probe = "llama_init_from_gpt_params: error: failed to load model '/nonexistent/probe.gguf'"
    (_, plan, *_), _ = run(INACTIVE, contract=contract, probe=probe)
    assert "--no-mmap" in json.loads(plan["_stdin"])["argv"]


def test_a_card_that_is_missing_is_told_before_the_restart(caplog):
    (_, plan, *_), _ = run(INACTIVE, cards=2)
    with caplog.at_level("INFO", logger="pyinfra"):
        commands, _ = run(INACTIVE, cards=1, before=plan["_stdin"].splitlines())
    assert RESTART in commands
    told = caplog.text
    assert "tiny: cards: NVIDIA RTX PRO 6000 Blackwell, NVIDIA RTX PRO 6000 Blackwell -> NVIDIA RTX" in told
    assert re.search(r"tiny: layers of experts on CUDA1: \d\d -> 0", told)
    assert re.search(r"tiny: predicted decode: [\d.]+ -> [\d.]+ tok/s", told)


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '"plan"', '{"ledger": 3, "experts": null}', '{"node": [1]}', '{"argv": 3}', "\ufffd\x00"]
)
def test_a_plan_that_is_garbage_is_written_again_and_ends_no_run(text, caplog):
    with caplog.at_level("INFO", logger="pyinfra"):
        commands, _ = run(INACTIVE, before=[text])
    assert RESTART in commands
    assert "tiny: the plan before can't be read" in caplog.text


def test_the_plan_of_the_node_is_in_the_unit():
    (unit, plan, *_), _ = run(INACTIVE, cards=1)
    plan = json.loads(plan["_stdin"])
    assert len(plan["experts"]["CUDA0"]) > 15
    assert f"-ot {plan['argv'][plan['argv'].index('-ot') + 1]} --cpu-moe" in unit["_stdin"]
    assert "DeviceAllow=char-nvidia* rw" in unit["_stdin"]
    assert "Environment=CUDA_DEVICE_ORDER=PCI_BUS_ID" in unit["_stdin"]
    assert "-c 8192" in unit["_stdin"]


# A refusal is the only command: nothing has been written, and the service that runs goes on.
REFUSALS = {
    "a port that another program has": (
        {"states": INACTIVE | {"port_holder": '"python3",pid=812'}},
        "services[3].port: 8080 is taken by python3 (pid 812); choose another or stop that program",
    ),
    "a model that does not fit": (
        {"states": INACTIVE, "context": 262144 * 64, "cards": 1},
        "services[3]: CUDA0 lacks 424667 MiB; it fits with context 2749440",
    ),
    "a wish that belongs to another placement": (
        {"states": INACTIVE, "rules": ["blk[.]1[.]ffn_up_exps=CPU"]},
        "services[3]: rules: belongs to placement manual and to no other; leave it out",
    ),
    "an unknown flag": (
        {"states": INACTIVE, "server_args": ["--metricss"], "probe": None},
        "services[3]: llama.cpp 0.7.0 (build 11669, commit Debian) does not know "
        "--metricss (did you mean --metrics?); see server_args",
    ),
    "a value that the engine refuses": (
        {"states": INACTIVE, "probe": 'error while handling argument "-c": stoi\n\nusage:\n'},
        "services[3]: llama.cpp 0.7.0 (build 11669, commit Debian) refuses these arguments: "
        'error while handling argument "-c": stoi (a value is no number, or too large)',
    ),
}


@pytest.mark.parametrize(("node", "line"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_start_is_refused_before_anything_is_touched(node, line):
    node = dict(node)
    ((name, (said,), _),), _ = run(node.pop("states"), **node)
    assert name == "_refused"
    assert said.startswith(line)


def test_the_probe_names_no_model_no_key_and_no_port_of_the_service():
    asked = []

    def probe(engine, arguments):
        asked.extend(arguments)
        return TAKEN

    run(INACTIVE, probe=probe)
    assert "/nonexistent/probe.gguf" in asked
    assert not {"/srv/models/m/m.gguf", "8080", "%d/api-keys"} & set(asked)


# What a build with CUDA lists beyond one without.
GPU_HELP = "  -ngl,  --gpu-layers N\n  -sm,   --split-mode N\n  -ts,   --tensor-split N\n"
IK_HELP = (Path(__file__).parents[1] / "fixtures/help/ik_llama.cpp-8337e4cd-cpu.txt").read_text()
IK = {**CONTRACT, "build": '{"dialect": "ik"}', "version": "version: 4840 (8337e4cd3)", "help": IK_HELP + GPU_HELP}
IK_TAKEN = "llama_init_from_gpt_params: error: failed to load model '/nonexistent/probe.gguf'"
# The lines of a dry run that count, in the form of src/llama.cpp; the sizes are made up for the test.
LOG = """\
llm_load_tensors:        CPU buffer size = {cpu:.2f} MiB
llm_load_tensors:      CUDA0 buffer size = {cuda:.2f} MiB
llama_init_from_model:      CUDA0 compute buffer size = {compute:.2f} MiB
"""


def ik(*states, rehearsal=None, kept=None, refusal=None, **more):
    """A run on a node with one card and ik_llama.cpp, whose dry run prints this."""

    def asked(job, library):
        assert json.loads(job)["argv"][0] == "-m"
        return {"refusal": refusal, "log": rehearsal, "status": None, "elapsed_s": 1.0}

    more |= {"contract": IK, "probe": IK_TAKEN, "cards": 1, "rehearsal": asked if rehearsal is not None else None}
    return run(*states, before=(kept or "").splitlines(), **more)


def test_the_engine_tries_the_plan_and_its_sizes_correct_it():
    (_, plan, record, *_), _ = ik(INACTIVE, rehearsal=LOG.format(cpu=1, cuda=1, compute=1))
    record = json.loads(record["_stdin"])
    assert record["margins_mib"] == [0]
    assert {"CUDA0", "CPU"} <= {each["device"] for each in record["differences"]}
    # The engine takes next to nothing, so no margin is left to keep, and more experts fit.
    assert len(json.loads(plan["_stdin"])["experts"]["CUDA0"]) >= 24


def test_a_record_of_the_same_plan_is_kept_without_asking_again():
    (_, plan, record, *_), _ = ik(INACTIVE, rehearsal=LOG.format(cpu=1, cuda=1, compute=1))
    again, _ = ik(INACTIVE, rehearsal=None, kept=record["_stdin"])
    assert again[1]["_stdin"] == plan["_stdin"]
    assert again[2]["_stdin"] == record["_stdin"]


def test_a_plan_that_the_engine_refuses_is_refused():
    ((name, (said,), _),), _ = ik(INACTIVE, rehearsal="", refusal="CUDA0 lacks memory")
    assert name == "_refused"
    assert said == "services[3]: the engine tried the plan without the weights: CUDA0 lacks memory"


def test_a_server_that_holds_the_cards_is_not_disturbed_by_a_trial():
    commands, _ = ik({"ActiveState": "active", "MainPID": "7", "generation": "other"}, rehearsal=None)
    assert not [command for command in commands if "rehearsal.json" in str(command)]


@pytest.mark.parametrize(("used_mib", "is_well"), [(90000, True), (300, False)])
def test_cards_that_stay_empty_are_a_failed_start(used_mib, is_well):
    plan = make(service(), "/srv/m.gguf", as_set(qwen35_397b()), epyc_9175f(1), "ik")
    host = Host({VramUsed: [used_mib]})
    host.shell = lambda command, **_: (True, None)
    with ctx_host.use(host):
        assert operations._cards_are_used(host, service(), plan) is is_well
    assert ("the engine is on the CPU" in " ".join(host.lines)) is not is_well


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now_s = 0.0

    def monotonic(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(operations, "time", clock)
    return clock


PROCESS = dict.fromkeys(ServerProcess.commands, "")


def wait(*states, generation="new", process=PROCESS, nodes=1):
    """Whether the wait for a start ends well, and what it says."""
    host = Host({ServiceState: in_turn(*states), ServerProcess: process})
    host.shell = lambda command: (True, SimpleNamespace(stdout_lines=[f"$ {command}", "the last words"]))
    plan = make(service(), "/srv/m.gguf", as_set(qwen35_397b()), with_numa_nodes(nodes), "ik")
    done = operations._wait_until_ready(
        None, host, service(start_timeout_s=60, warm_up_timeout_s=30), generation, plan
    )
    return done, host.lines


STARTING = {"ActiveState": "activating", "SubState": "start-post", "generation": "new", "Result": "success"}
READY = {"ActiveState": "active", "SubState": "running", "generation": "new", "Result": "success"}


def test_a_server_whose_memory_is_not_spread_over_the_nodes_is_a_failed_start(clock):
    well = wait(READY, process=texts(thp=1 << 30), nodes=2)
    assert well == (True, ["tiny is ready after 0 s", f"tiny: {Process.parse(texts(thp=1 << 30))}"])
    done, lines = wait(READY, process=texts(thp=1 << 30, numa_maps=""), nodes=2)
    assert not done
    assert "no memory of the server is interleaved" in lines[-1]


def test_a_server_on_small_pages_is_said(clock):
    done, lines = wait(READY, process=texts())
    assert done
    assert "huge_pages: 0 MiB of" in lines[-1]


def test_the_wait_ends_when_the_unit_is_active(clock):
    assert wait(STARTING, STARTING, READY) == (True, ["tiny: start-post, 0 s", "tiny is ready after 2 s"])


def test_the_process_before_the_restart_is_not_waited_for(clock):
    old = READY | {"generation": "old"}
    done, _ = wait(old, STARTING, READY)
    assert done
    assert clock.now_s == 2


@pytest.mark.parametrize(
    "end",
    [
        {"ActiveState": "failed", "SubState": "failed", "Result": "exit-code"},
        {"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code"},
    ],
    ids=["failed", "about to be restarted"],
)
def test_a_start_that_fails_ends_the_wait_with_its_last_words(clock, end):
    done, lines = wait(STARTING, end)
    assert not done
    assert clock.now_s == 1
    assert lines[-3:] == [
        f"llama-server-tiny.service does not start ({end['ActiveState']}, exit-code); its last words:",
        "    $ journalctl --no-pager --output cat --lines 60 --unit llama-server-tiny.service "
        "| grep -v ' UTC m=+' | tail -n 20",
        "    the last words",
    ]


def test_a_start_that_takes_too_long_fails(clock):
    done, _ = wait(STARTING)
    assert not done
    assert clock.now_s == 60 + 30 + 60


def test_the_wait_says_how_much_is_loaded_but_not_the_same_twice_in_a_row(clock):
    loading = [STARTING | {"MemoryCurrent": str(n << 30)} for n in (1, 1, 2)]
    _, lines = wait(*loading, READY)
    assert lines[:-1] == ["tiny: start-post, 1.0 GiB in memory, 0 s", "tiny: start-post, 2.0 GiB in memory, 2 s"]
