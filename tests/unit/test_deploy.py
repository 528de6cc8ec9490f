"""The whole deploy, planned and applied to simulated nodes (pyinfra's `@fake` connector runs nothing)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures import planned_node

ROOT = Path(__file__).parents[2]
SERVICE = {"name": "tiny", "model": {"name": "m", "source": "file:///srv/m.gguf"}}
PACKAGED = {"engine": {"source": "package"}}
OTHER = {"name": "other", "port": 8081, "model": {"name": "n", "source": "file:///srv/n.gguf"}}

SHARING = {"engine": {"source": "package", "rpc": True}}
RPC = {
    "network": "10.0.0.0/24",
    "address": "10.0.0.1",
    "workers": [{"host": "@fake/worker", "address": "10.0.0.2"}],
}
SHARED = {**SERVICE, "placement": "rpc", "rpc": RPC, "context": 8192}
NOWHERE = {**RPC, "workers": [{"host": "@fake/nobody", "address": "10.0.0.3"}]}

# What a fresh Debian says; to any other question a simulated node answers nothing and succeeds.
TRIXIE = {
    "for package in aria2": ["aria2", "ca-certificates", "curl", "iproute2", "procps", "python3"],
    "for package in llama.cpp-tools": "llama.cpp-tools",
    "cat /etc/os-release": ["VERSION_CODENAME=trixie", 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"'],
    "apt-get indextargets": "Packages trixie main http://mirror.home.arpa/debian/",
}
BOOKWORM = TRIXIE | {
    "cat /etc/os-release": ["VERSION_CODENAME=bookworm", 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"'],
}
WITH_ENGINE = {
    "path=$(readlink": ["package=1", "path=/usr/bin/llama-server", f"sha256={'0' * 64}", "version=1"],
    "basename": "current=",
}
WITH_RPC = {
    "libggml0-backend-rpc 2>": ["rpc_server=/usr/libexec/x/llama/bin/ggml-rpc-server", "backend=1"],
    "=== release": [
        *("=== release", "1-1", "=== build", '{"dialect": "llama.cpp"}', "=== program", "/x/bin/rpc-server"),
        *("=== addresses", "10.0.0.2"),
        *(line for key, text in planned_node.machine().items() for line in [f"=== {key}", *text.splitlines()]),
    ],
}
WITHOUT_PACKAGE = (
    "engine.source: 'package' needs llama.cpp-tools, which Debian GNU/Linux 12 (bookworm) does not have; "
    "Debian 13 and later do"
)

# A plan ends at the first command of an operation; tests/operations render these, and test_unit.py the units.
BEYOND_A_PLAN = {
    *(f"llama_server/{each}.j2" for each in ("llama-server.container", "llama-server-podman.service", "container")),
    *(f"nvidia_container_toolkit/{each}.j2" for each in ("toolkit.preferences", "cdi-fresh")),
    *("apt/fetch-key.j2", "apt/source.j2", "ik_llama/cuda.preferences.j2", "tune/restore.j2"),
    *(
        f"nvidia_driver/{name}.j2"
        for name in ("nouveau.conf", "modules.conf", "driver.preferences", "contrib.sources")
    ),
    *(f"host_tuning/{each}.j2" for each in ("sysctl.conf", "tmpfiles.conf", "disk.rules", "grub.cfg")),
    "firewall/rules.nft.j2",
    "router/haproxy.cfg.j2",
    "autoinstall/preseed.cfg.j2",  # for an installer
    "bench/report.html.j2",  # for a reader
    *("ik_llama/build.j2", "ik_llama/checkout.j2", "ik_llama/Containerfile.j2"),
}


class Run:
    """A deploy to simulated nodes: what it prints, and its exit code."""

    def __init__(self, folder, nodes, *options, deploy="deploy.py"):
        hosts = [(f"@fake/{name}", {"fake_responses": TRIXIE, **data}) for name, data in nodes.items()]
        inventory = folder / "hosts.py"
        inventory.write_text(f"nodes = {hosts!r}\n")
        command = [Path(sys.executable).with_name("pyinfra"), inventory, deploy, "--json", *options]
        environment = {**os.environ, "PYINFRA_FAKE_DELAY": "0", "PYINFRA_FAKE_DELAY_JITTER": "0"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        self.code, self.data, self.talk = done.returncode, done.stdout, done.stderr
        assert "Traceback" not in self.talk, self.talk
        assert "internal exception" not in self.talk, self.talk

    def changes(self, node):
        """Names of the operations with which the plan wants to change something on a node."""
        plan = json.loads(self.data)["plan"]
        return [each["name"] for each in plan if f"@fake/{node}" in each["hosts_with_change"]]

    def said_of(self, node):
        """The lines about a node."""
        return re.findall(rf"^ *\[@fake/{node}\] +(.*)$", self.talk, re.MULTILINE)

    @property
    def results(self):
        """What a run has done."""
        return json.loads(self.data)["results"]


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    """Where the plan notes each template that it takes."""
    return tmp_path_factory.mktemp("spy") / "notes"


@pytest.fixture(scope="module")
def plan(tmp_path_factory, notes):
    """One plan for nodes of every kind."""
    spy = notes.with_name("spy.py")
    spy.write_text(
        "from roles import operations\n"
        "take = operations._environment.get_template\n"
        "def noted(name, *parent):\n"
        f"    with open({str(notes)!r}, 'a') as file:\n"
        "        print(name, file=file)\n"
        "    return take(name, *parent)\n"
        "operations._environment.get_template = noted\n" + (ROOT / "deploy.py").read_text()
    )
    address = notes.with_name("url")
    address.write_text("https://ntfy.home.arpa/topic\n")
    key = notes.with_name("router.key")
    key.write_text("the-key-of-the-router-01\n")
    routed = {"host": "all.home.arpa", "nodes": ["@fake/gated"], "node_key_file": str(key)}
    nodes = {
        "fresh": {**PACKAGED, "services": [SERVICE]},
        "builder": {"services": [SERVICE]},
        "two": {**PACKAGED, "services": [SERVICE, OTHER]},
        "ready": {**PACKAGED, "fake_responses": WITH_ENGINE | planned_node.responses(), "services": [SERVICE]},
        "carded": {**PACKAGED, "fake_responses": {"=== cards": ["=== cards", "/sys/bus/pci/devices/x/vendor"]}},
        "old": {**PACKAGED, "fake_responses": BOOKWORM},
        "wrong": {"services": [{**SERVICE, "contxt": 1}], "models_dir": "srv"},
        "watched": {
            **PACKAGED,
            "services": [SERVICE],
            "metrics": {"prometheus": True},
            "notify": {"by": "ntfy", "url_file": str(address)},
        },
        "tokenless": {"hf_token_file": "/nonexistent/token"},
        "gated": {**PACKAGED, "services": [SERVICE], "gateway": {"host": "llm.home.arpa"}},
        "routing": {**PACKAGED, "router": routed},
        "lost": {"router": {**routed, "nodes": ["@fake/nobody", "@fake/fresh"]}},
        "keyless": {"services": [{**SERVICE, "api_keys_file": "/nonexistent/keys"}]},
        "main": {**SHARING, "services": [{**SERVICE, "placement": "rpc", "rpc": RPC}]},
        "worker": {**SHARING, "fake_responses": WITH_RPC | WITH_ENGINE},
        "alone": {**SHARING, "services": [{**SERVICE, "placement": "rpc", "rpc": NOWHERE}]},
    }
    return Run(tmp_path_factory.mktemp("plan"), nodes, "--dry", "-vvv", deploy=spy)


class TestPlan:
    def test_a_node_where_nothing_exists(self, plan):
        assert not [line for line in plan.said_of("fresh") if line.startswith("will fail")]
        roles = ["Base"] * 3 + ["Engine"] * 3 + ["Models"] * 3 + ["Service"] * 3
        assert [name.split(" | ")[0] for name in plan.changes("fresh")] == roles
        assert plan.changes("fresh")[-5:] == [
            "Models | Have m in the store",
            "Models | Compare the models with their checksums now and then",
            "Service | Install the programs of a start",
            "Service | Have an API key for tiny",
            "Service | Run tiny, warm",
        ]

    def test_a_node_that_builds_its_engine(self, plan):
        assert not [line for line in plan.said_of("builder") if line.startswith("will fail")]
        engine = [name for name in plan.changes("builder") if name.startswith("Engine")]
        assert engine == ["Engine | Build ik_llama.cpp 8337e4cd3861 for this machine, prove it"]

    def test_a_gateway_where_nothing_exists(self, plan):
        assert not [line for line in plan.said_of("gated") if line.startswith("will fail")]
        gateway = [name.removeprefix("Gateway | ") for name in plan.changes("gated") if name.startswith("Gateway")]
        assert gateway == [
            "Make its account",
            "Have services marked that are warm",
            "Install the program that hands it the keys",
            "Have the owner's list of keys, and those of routers",
            "Configure it",
            "Run it, until it answers",
        ]

    def test_nodes_that_share_a_model(self, plan):
        assert not [line for node in ("main", "worker") for line in plan.said_of(node) if "will fail" in line]
        wanted = [name for name in plan.changes("worker") if name.startswith("Worker")]
        assert wanted == [
            "Worker | Guard the workers",
            "Worker | Install the program of a start",
            "Worker | Hold layers of tiny for @fake/main",
        ]
        names = [each["name"] for each in json.loads(plan.data)["plan"]]
        assert names.index(wanted[-1]) < names.index("Service | Run tiny, warm")
        assert not [name for name in plan.changes("fresh") if name.startswith("Worker")]

    def test_a_router_where_nothing_exists(self, plan):
        assert not [line for line in plan.said_of("routing") if line.startswith("will fail")]
        names = [name.removeprefix("Router | ") for name in plan.changes("routing") if name.startswith("Router")]
        assert names == [
            "Make its account",
            "Install the programs beside it",
            "Install what talks to it",
            "Have the owner's list of keys, and the key for nodes",
            "Configure it",
            "Run it, until it answers",
        ]

    def test_a_router_before_nobody(self, plan):
        said = " ".join(plan.said_of("lost"))
        assert "router.nodes: '@fake/nobody' is no host of the inventory; it has @fake/fresh" in said
        assert "router.nodes: @fake/fresh has no gateway" in said

    def test_models_and_services_of_a_node_come_in_order(self, plan):
        names = " ".join(plan.changes("two"))
        order = ["Have m in", "Have n in", "key for tiny", "key for other", "Run tiny", "Run other"]
        assert sorted(order, key=names.index) == order

    def test_a_node_that_has_engine_and_model(self, plan):
        assert not [line for line in plan.said_of("ready") if line.startswith("will fail")]
        assert "Models | Have m in the store" not in plan.changes("ready")
        assert "Service | Run tiny, warm" in plan.changes("ready")

    def test_a_node_that_is_watched_and_tells(self, plan):
        assert not [line for line in plan.said_of("watched") if line.startswith("will fail")]
        names = [name for name in plan.changes("watched") if name.startswith(("Metrics", "Notification"))]
        assert names == [
            "Metrics | Describe what is looked at, the units and the alerts",
            "Metrics | Have cards, services and the node watched",
            "Notification | Have failures of units told",
        ]
        # Without the settings nothing is asked for.
        assert not [name for name in plan.changes("fresh") if name.startswith(("Metrics", "Notification"))]

    def test_every_template_renders(self, plan, notes):
        assert plan.changes("ready")
        templates = {str(path.relative_to(ROOT / "templates")) for path in (ROOT / "templates").rglob("*.j2")}
        assert set(notes.read_text().split()) == templates - BEYOND_A_PLAN

    def test_what_will_fail_is_announced(self, plan):
        assert f"will fail: {WITHOUT_PACKAGE}" in plan.said_of("old")

    @pytest.mark.parametrize(
        ("node", "lines"),
        [
            (
                "wrong",
                [
                    "services[0].contxt: unknown setting; did you mean 'context'?",
                    "models_dir: 'srv': write an absolute path of letters, digits and ._-, without ..",
                ],
            ),
            (
                "tokenless",
                ["hf_token_file: /nonexistent/token is not a file on this computer; make it or correct the path"],
            ),
            (
                "alone",
                [
                    "services[0].rpc.workers[0].host: @fake/nobody is no host of the inventory with right settings",
                ],
            ),
            (
                "keyless",
                [
                    "services[0].api_keys_file: /nonexistent/keys is not a file on this computer; "
                    "make it or correct the path"
                ],
            ),
        ],
    )
    def test_wrong_settings_end_only_their_host(self, plan, node, lines):
        assert plan.code == 1
        assert set(lines) <= set(plan.said_of(node))
        assert plan.changes(node) == []
        # Nothing has been asked of it, while others were.
        assert not [line for line in plan.said_of(node) if line.startswith(">>>")]
        assert [line for line in plan.said_of("fresh") if line.startswith(">>>")]


class TestShared:
    """A main node that is ready, and what its worker says of itself in the same plan."""

    HELP = planned_node.CONTRACT["help"] + "\n--rpc SERVERS                           comma-separated list\n"
    # Its own packages are there; the worker's fact comes before what has a part of its command.
    ANSWERS = WITH_RPC | WITH_ENGINE | planned_node.responses() | {
        "llama-server --help": "\n===\n".join((planned_node.CONTRACT | {"help": HELP}).values())
    }  # fmt: skip

    def plan(self, folder, build='{"dialect": "llama.cpp"}', limit=()):
        worker = [build if line.startswith("{") and "dialect" in line else line for line in WITH_RPC["=== release"]]
        nodes = {
            "main": {**SHARING, "fake_responses": self.ANSWERS, "services": [SHARED]},
            "worker": {**SHARING, "fake_responses": {**WITH_RPC, "=== release": worker} | WITH_ENGINE},
        }
        return Run(folder, nodes, "--dry", *limit)

    @pytest.mark.parametrize("limit", [(), ("--limit", "@fake/main")])
    def test_the_worker_is_asked_whatever_the_deploy_is_limited_to(self, tmp_path, limit):
        run = self.plan(tmp_path, limit=limit)
        assert not [line for line in run.said_of("main") if "will fail" in line]
        assert "Service | Run tiny, warm" in run.changes("main")
        assert bool(run.changes("worker")) is not bool(limit)

    def test_another_engine_there_is_announced(self, tmp_path):
        run = self.plan(tmp_path, build='{"dialect": "llama.cpp", "commit": "9"}')
        assert (
            "will fail: services[0]: rpc.workers[0]: @fake/worker has the engine ik_llama.cpp 9, this node "
            "ik_llama.cpp None; deploy both with the same one"
        ) in run.said_of("main")


def test_a_plan_without_a_mistake_exits_well(tmp_path):
    run = Run(tmp_path, {"fresh": {"services": [SERVICE]}}, "--dry")
    assert run.code == 0, run.talk
    assert run.results is None


def test_no_host_with_right_settings_is_left(tmp_path):
    run = Run(tmp_path, {"one": {"servces": []}, "two": {"models_dir": "srv"}}, "-y")
    assert (run.code, run.results["totals"]["hosts"]) == (1, 0)
    assert run.results["failed_hosts"] == ["@fake/one", "@fake/two"]
    assert {name: each["failed"] for name, each in json.loads(run.data)["hosts"].items()} == {
        "@fake/one": "servces: unknown setting; did you mean 'services'?",
        "@fake/two": "models_dir: 'srv': write an absolute path of letters, digits and ._-, without ..",
    }
    assert "servces: unknown setting; did you mean 'services'?" in run.said_of("one")
    assert any(line.startswith("models_dir: 'srv': ") for line in run.said_of("two"))
    assert "Starting operation" not in run.talk


def test_a_host_that_is_refused_fails_at_once_and_the_others_go_on(tmp_path):
    responses = {"good": WITH_ENGINE, "old": BOOKWORM}
    run = Run(tmp_path, {node: {**PACKAGED, "fake_responses": each} for node, each in responses.items()}, "-y")
    assert run.code == 1
    assert run.said_of("old").count(WITHOUT_PACKAGE) == 1
    assert run.results["failed_hosts"] == ["@fake/old"]
    programs = "Service | Install the programs of a start"
    (last,) = [each for each in run.results["operations"] if each["name"] == programs]
    assert last["success"] == ["@fake/good"]


def test_a_run_exits_well_and_shows_no_secret_however_talkative_it_is(tmp_path):
    (tmp_path / "token").write_text("hf_secret_of_the_owner\n")
    nodes = {"good": {**PACKAGED, "fake_responses": WITH_ENGINE, "hf_token_file": str(tmp_path / "token")}}
    run = Run(tmp_path, nodes, "-y", "-vvv", "--diff", "--debug")
    assert run.code == 0, run.talk
    assert run.results["totals"]["success"] > 0
    assert "/etc/moehost/hub-token" in run.talk
    assert "hf_secret_of_the_owner" not in run.data + run.talk


def test_a_machine_that_may_reboot_goes_alone_and_one_without_its_card_is_refused(tmp_path):
    nodes = {"may": {"allow_reboot": True}, "stays": {}, "bare": {"gpu": "require"}, "off": {"gpu": "off"}}
    data = {node: {**PACKAGED, "fake_responses": WITH_ENGINE, **each} for node, each in nodes.items()}
    run = Run(tmp_path, data, "-y")
    assert run.results["failed_hosts"] == ["@fake/bare"]
    (line,) = [line for line in run.said_of("bare") if line.startswith("gpu: 'require'")]
    assert "no NVIDIA card" in line
    ran = {each["name"]: each["no_change"] for each in run.results["operations"] if each["name"].startswith("Driver")}
    assert ran == {
        "Driver | Have NVIDIA's driver, reboot for it if need be": ["@fake/may"],
        "Driver | Have NVIDIA's driver": ["@fake/stays"],
    }


def test_keys_that_can_not_be_ones_end_their_host_before_anything_is_touched(tmp_path):
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.write_text("# my keys\nshort\na-key-of-the-owner 0123456789\n")
    good.write_text("# my keys\n\na-key-of-the-owner-0123456789  \n")
    wish = {"host": "llm.home.arpa", "user_keys_file": str(bad)}
    own = {"certificate_file": str(good), "certificate_key_file": str(good)}
    nodes = {
        "bad": {**PACKAGED, "services": [{**SERVICE, "api_keys_file": str(bad)}]},
        "users": {**PACKAGED, "services": [SERVICE], "gateway": wish},
        "certificate": {**PACKAGED, "services": [SERVICE], "gateway": {"host": "llm.home.arpa", **own}},
        "good": {**PACKAGED, "services": [{**SERVICE, "api_keys_file": str(good)}]},
    }
    run = Run(tmp_path, nodes, "--dry")
    assert run.code == 1
    where = f"services[0].api_keys_file: {bad}"
    assert [line for line in run.said_of("bad") if "keys" in line] == [
        f"{where}: line 2 has 5 characters; a key needs 16 at least, e.g. of `openssl rand -hex 32`",
        f"{where}: line 3 has blanks in it; write one key per line",
    ]
    assert [line for line in run.said_of("users") if "keys" in line] == [
        f"gateway.user_keys_file: {bad}:2 is no `NAME KEY`",
        f"gateway.user_keys_file: {bad}:3 has 10 characters; a key needs 16 at least, e.g. of `openssl rand -hex 32`",
    ]
    assert any(
        line.startswith(f"gateway.certificate_file: {good} can't be read") for line in run.said_of("certificate")
    )
    assert "Service | Have an API key for tiny" in run.changes("good")
    assert "a-key-of-the-owner" not in run.data + run.talk
