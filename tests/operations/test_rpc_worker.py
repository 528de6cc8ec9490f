"""A worker: made, changed, refused, taken away; and what the main node asks of it before a start."""

import json
from types import SimpleNamespace

import pytest
from pyinfra.api.exceptions import PyinfraError
from pyinfra.context import ctx_host, ctx_inventory, ctx_state
from pyinfra_testing.util import FakeState

from moehost import settings
from moehost.sharing import Share
from roles.facts import FileStates, MissingPackages
from roles.ik_llama.facts import PackagedEngine, PackagedWorker, Releases
from roles.ik_llama.operations import packaged_release
from roles.llama_server import workers as asked
from roles.llama_server.facts import ServiceState
from roles.llama_server.operations import _is_cut_off
from roles.rpc_worker.facts import UNITS, Answering, Connected, InstalledWorkers, Waiting, Worker
from roles.rpc_worker.operations import gone, working
from tests.fixtures.planned_node import machine
from tests.operations.plain import Host, play, sha256

NODE = settings.read({"engine": {"rpc": True}, "gpu": "off"})
SHARE = Share("qwen", "epyc1", "10.0.0.1", "epyc2", "10.0.0.2", 50052, "auto", False)
BUILD = {"source": "git", "dialect": "ik", "commit": "8337"}
THERE = {
    "release": "8337-1\n",
    "build": json.dumps(BUILD),
    "program": "/opt/moehost/engine/next/bin/rpc-server\n",
    "addresses": "127.0.0.1\n10.0.0.2\n",
    **machine(1),
}
INACTIVE = {"ActiveState": "inactive", "UnitFileState": "", "NeedDaemonReload": "no", "generation": ""}
PATH = f"{UNITS}/moehost-rpc-qwen.service"
RESTART = (
    "systemctl reset-failed moehost-rpc-qwen.service 2>/dev/null; systemctl restart moehost-rpc-qwen.service || "
    "{ journalctl --no-pager --output cat --lines 8 --unit moehost-rpc-qwen.service >&2; exit 1; }"
)
ENABLE = "systemctl enable --quiet moehost-rpc-qwen.service"


def run(state=INACTIVE, share=SHARE, there=THERE, files=None, waiting=0):
    facts = {Worker: there, Waiting: waiting, ServiceState: state, FileStates: lambda paths: files or {}}
    return play(working, facts, node=NODE, share=share)


def refused(*arguments, **more):
    ((function, (reason,), _),), _ = run(*arguments, **more)
    assert function == "_refused"
    return reason


@pytest.fixture(scope="module")
def described():
    """The file and the state of a worker that is as it should be."""
    (unit, *_), _ = run()
    generation = unit["_stdin"].partition("MOEHOST_GENERATION=")[2].splitlines()[0]
    state = {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no", "generation": generation}
    files = {PATH: [sha256(unit["_stdin"]), "644", "root:root"]}
    return SimpleNamespace(unit=unit["_stdin"], state=state, files=files)


class TestWorking:
    def test_a_fresh_node(self):
        (unit, *commands), _ = run()
        assert unit["command"].split()[-1] == PATH
        assert commands == [ENABLE, RESTART]

    def test_one_that_is_as_described_is_left_alone(self, described):
        commands, noops = run(described.state, files=described.files)
        assert (commands, noops[-1]) == ([], "moehost-rpc-qwen.service listens at 10.0.0.2:50052")

    def test_a_client_that_waits_behind_one_that_is_gone_gets_a_fresh_one(self, described):
        commands, _ = run(described.state, files=described.files, waiting=1)
        assert commands == [RESTART]

    def test_the_engine_is_the_release_and_the_card_is_left_alone_where_it_is_off(self, described):
        words = "-H 10.0.0.2 -p 50052 -t 16 -cpu -d CPU"
        assert f"\nExecStart=/opt/moehost/engine/releases/8337-1/bin/rpc-server {words}\n" in described.unit

    def test_another_release_restarts_it(self, described):
        commands, _ = run(described.state, there=THERE | {"release": "9999-1\n"}, files=described.files)
        assert commands[1:] == [RESTART]

    def test_a_run_that_was_cut_off_after_the_file_starts_it(self, described):
        commands, _ = run(described.state | {"ActiveState": "failed", "generation": ""}, files=described.files)
        assert commands == [RESTART]

    def test_the_plan_of_a_fresh_node(self):
        commands, _ = run(there=dict.fromkeys(THERE, ""))
        assert commands == ["test -e /opt/moehost/engine/next/bin/rpc-server"]

    def test_an_engine_without_rpc_is_refused(self):
        assert refused(there=THERE | {"program": ""}) == (
            "rpc: qwen of epyc1: the engine 8337-1 has no rpc-server; deploy with engine: {'rpc': True}"
        )

    def test_an_address_of_another_machine_is_refused(self):
        assert "10.0.0.2 is no address of this node, which has 127.0.0.1, 10.9.9.9" in refused(
            there=THERE | {"addresses": "127.0.0.1\n10.9.9.9\n"}
        )

    def test_a_port_that_is_taken_is_refused(self):
        (*_, (function, (reason,), _)), _ = run(INACTIVE | {"port_holder": '"nc",pid=7'})
        assert (function, "port 50052 is taken by nc (pid 7)" in reason) == ("_refused", True)

    def test_a_machine_that_says_nothing_is_refused_in_a_line(self):
        assert refused(there=THERE | {"meminfo": ""}).startswith("rpc: qwen of epyc1: meminfo: ")


class TestGone:
    def test_what_nobody_names_goes_with_what_it_kept(self):
        there = {InstalledWorkers: ["moehost-rpc-old.service", "moehost-rpc-qwen.service"]}
        commands, _ = play(gone, there, units=["moehost-rpc-qwen.service"])
        assert commands == [
            "systemctl disable --quiet --now moehost-rpc-old.service",
            f"rm -rf {UNITS}/moehost-rpc-old.service /var/lib/moehost-rpc/old && systemctl daemon-reload; "
            "systemctl reset-failed moehost-rpc-old.service 2>/dev/null; true",
        ]

    def test_nothing_is_left_over(self):
        assert play(gone, {InstalledWorkers: []}, units=[]) == ([], ["no worker is left over"])


class TestPackaged:
    ENGINE = {"package": "1", "path": "/usr/bin/llama-server", "sha256": "a" * 64, "version": "v"}
    PROGRAM = {"rpc_server": "/usr/libexec/x/llama/bin/ggml-rpc-server", "backend": "0.27.0-1"}
    NONE = {"current": "", "next": "", "previous": "", "releases": [], "leftovers": []}

    def facts(self, worker, missing=()):
        there = {PackagedEngine: self.ENGINE, PackagedWorker: worker, Releases: self.NONE}
        return there | {MissingPackages: list(missing)}

    def test_a_release_with_rpc_has_both_programs_and_a_name_of_its_own(self):
        commands, _ = play(packaged_release, self.facts(self.PROGRAM), package="llama.cpp-tools", rpc=True)
        new = f"/opt/moehost/engine/releases/.1-{'a' * 12}-rpc0.27.0-1"
        assert f"ln -s {self.PROGRAM['rpc_server']} {new}/bin/rpc-server" in commands
        (written,) = [each for each in commands if isinstance(each, dict)]
        assert json.loads(written["_stdin"])["backend"] == "0.27.0-1"

    def test_a_plan_that_will_install_them_refuses_nothing(self):
        facts = self.facts({}, ["libggml0-backend-rpc"])
        commands, _ = play(packaged_release, facts, package="llama.cpp-tools", rpc=True)
        assert commands == ["ls /usr/libexec/*/llama/bin/ggml-rpc-server"]

    def test_without_the_program_it_is_refused(self):
        ((function, (reason,), _),), _ = play(packaged_release, self.facts({}), package="llama.cpp-tools", rpc=True)
        assert (function, "no rpc-server" in reason) == ("_refused", True)


RPC = {
    "network": "10.0.0.0/24",
    "address": "10.0.0.1",
    "workers": [{"host": "epyc2", "address": "10.0.0.2"}],
}
SERVICE = settings.read(
    {
        "engine": {"rpc": True},
        "services": [
            {"name": "qwen", "model": {"name": "m", "source": "file:///m.gguf"}, "placement": "rpc", "rpc": RPC}
        ],
    }
).services[0]


def ask(there, is_executing=True, build=BUILD):
    """The workers as the main node finds them."""

    def get_fact(_):
        if isinstance(there, Exception):
            raise there
        return there

    other = SimpleNamespace(get_fact=get_fact, data=SimpleNamespace(dict=dict))
    inventory = SimpleNamespace(get_host=lambda name, default: other if name == "epyc2" else default)
    state = FakeState()
    state.is_executing = is_executing
    with ctx_state.use(state), ctx_inventory.use(inventory), ctx_host.use(Host({})):
        return asked.workers(SERVICE, build)


class TestAsked:
    def test_what_a_worker_has_is_what_it_says_itself(self):
        (found,) = ask(THERE)
        assert (found.endpoint, len(found.gpus), found.node.physical_cores) == ("10.0.0.2:50052", 1, 16)

    def test_another_engine_is_refused(self):
        with pytest.raises(ValueError, match=r"^rpc.workers\[0\]: epyc2 has the engine ik_llama.cpp 8337, this node"):
            ask(THERE, build=BUILD | {"commit": "9999"})

    def test_one_without_an_engine_is_refused_or_still_to_come(self):
        with pytest.raises(ValueError, match="epyc2 has no engine; deploy it, too"):
            ask(dict.fromkeys(THERE, ""))
        with pytest.raises(asked.NotDeployed):
            ask(dict.fromkeys(THERE, ""), is_executing=False)

    def test_one_that_can_not_be_asked_is_one_line(self):
        with pytest.raises(ValueError, match="epyc2 can't be asked: no route"):
            ask(PyinfraError("no route"))

    @pytest.mark.parametrize(("answering", "is_silent"), [(["10.0.0.2:50052"], False), ([], True)])
    def test_one_that_does_not_answer_is_told(self, answering, is_silent):
        found = ask(THERE)
        with ctx_host.use(Host({Answering: answering})):
            said = asked.silent(SERVICE, found)
        assert (said or "").startswith("rpc.workers[0]: 10.0.0.2:50052 (epyc2) does not answer") is is_silent


class TestCutOff:
    """A server that runs, and whose worker has ended meanwhile."""

    def cut_off(self, connected, state="active", workers=("10.0.0.2:50052",)):
        offload = SimpleNamespace(workers=workers)
        goal = SimpleNamespace(plan=SimpleNamespace(placement=SimpleNamespace(offload=offload)))
        with ctx_host.use(Host({Connected: connected})):
            return _is_cut_off(goal, {"ActiveState": state})

    def test_it_is_seen_by_its_connection(self):
        assert self.cut_off([])
        assert not self.cut_off(["10.0.0.2:50052"])

    def test_one_that_starts_has_none_yet_and_one_without_workers_is_not_asked(self):
        assert not self.cut_off(None, state="activating")
        assert not self.cut_off(None, workers=())
