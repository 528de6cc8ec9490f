"""One model over two nodes, from one node alone and back again: each test goes on from where the one before ended."""

import json
import subprocess
import time

import pytest

from tests.fixtures.neighbour import Neighbour
from tests.fixtures.node import Node, changes
from tests.fixtures.waiting import until
from tests.rpc.conftest import PORT, Pair

WORKER = "moehost-rpc-tiny.service"
# A server that ends is started again after 30 s.
BACK_S = 120


@pytest.fixture(scope="module")
def alone(pair: Pair) -> str:
    """What the model says from one node."""
    changes(pair.deploy(pair.main.settings))
    return pair.answer()


@pytest.fixture(scope="module")
def shared(pair: Pair, alone: str) -> list[str]:
    """What the deploy changed that shares the model; the answer alone is known by then."""
    assert alone
    return changes(pair.deploy(pair.shared()))


def prop(node: Node, unit: str, name: str) -> str:
    return node.run(f"systemctl show --property {name} --value {unit}")


def is_refused(deploy: subprocess.CompletedProcess[str], sentence: str) -> None:
    assert deploy.returncode == 1
    assert sentence in deploy.stderr
    assert "Traceback" not in deploy.stderr


class TestShared:
    def test_the_worker_comes_first(self, shared: list[str]) -> None:
        order = ["Worker | Guard the workers", "Worker | Hold layers of tiny for", "Service | Run tiny, warm"]
        found = [next(n for n, name in enumerate(shared) if name.startswith(each)) for each in order]
        assert found == sorted(found)

    def test_layers_are_there(self, pair: Pair, shared: list[str]) -> None:
        plan = json.loads(pair.main.run("cat /etc/moehost/tiny/plan.json"))
        assert plan["experts"]["RPC0"]
        (row,) = [each for each in plan["ledger"] if each["device"] == "RPC0"]
        # What the worker got over the one connection that it has: the weights of its layers, at least.
        said = pair.worker.run(f"ss -Htin state established 'sport = :{PORT}'")
        assert said.split()[3].startswith(f"{pair.address(pair.main)}:")
        received = int(said.split("bytes_received:")[1].split()[0])
        assert received / 2**20 >= row["dense_mib"] + row["experts_mib"] - 2

    def test_the_answer_is_that_of_one_node(self, pair: Pair, alone: str, shared: list[str]) -> None:
        assert pair.answer() == alone

    def test_a_second_deploy_changes_nothing(self, pair: Pair, shared: list[str]) -> None:
        before = pair.main.process, prop(pair.worker, WORKER, "MainPID")
        assert changes(pair.deploy(pair.shared())) == []
        assert (pair.main.process, prop(pair.worker, WORKER, "MainPID")) == before


class TestGuard:
    def test_it_listens_at_its_address_only(self, pair: Pair, shared: list[str]) -> None:
        listening = pair.worker.run(f"ss -Hltn 'sport = :{PORT}'").splitlines()
        assert [line.split()[3] for line in listening] == [f"{pair.address(pair.worker)}:{PORT}"]

    def test_a_third_computer_gets_no_connection(self, pair: Pair, shared: list[str], outside: Neighbour) -> None:
        there = f"telnet://{pair.address(pair.worker)}:{PORT}"
        # The way is there: a port that nobody guards and nobody listens at refuses at once.
        unguarded = outside.run("curl", "--silent", "--connect-timeout", "5", there.replace(str(PORT), "50051"))
        assert unguarded.returncode == 7
        tried = outside.run("curl", "--silent", "--connect-timeout", "3", there)
        assert tried.returncode == 28
        dropped = pair.worker.run("nft list table inet moehost")
        assert f"tcp dport {PORT} counter packets 0" not in dropped.replace("{ ", "").replace(" }", "")

    def test_the_unit_knows_its_main_node_only(self, pair: Pair, shared: list[str]) -> None:
        assert prop(pair.worker, WORKER, "IPAddressAllow") == f"{pair.address(pair.main)}/32"
        assert prop(pair.worker, WORKER, "IPAddressDeny") in ("0.0.0.0/0 ::/0", "::/0 0.0.0.0/0")

    def test_without_its_table_it_does_not_run(self, pair: Pair, shared: list[str]) -> None:
        pair.worker.run("systemctl stop moehost-firewall.service")
        assert prop(pair.worker, WORKER, "ActiveState") == "inactive"
        assert "Worker | Hold layers of tiny" in " ".join(changes(pair.deploy(pair.shared())))

    @pytest.mark.parametrize(
        ("rpc", "sentence"),
        [
            ({"network": "0.0.0.0/0"}, "services[0].rpc.network: 0.0.0.0/0 is no private network"),
            ({"network": "8.8.8.0/24"}, "services[0].rpc.network: 8.8.8.0/24 is no private network"),
            ({"network": "10.99.0.0/24"}, "is not in the network 10.99.0.0/24"),
        ],
    )
    def test_another_network_is_refused(
        self, pair: Pair, shared: list[str], rpc: dict[str, str], sentence: str
    ) -> None:
        process = pair.main.process
        is_refused(pair.deploy(pair.shared(**rpc), "--limit", f"@podman/{pair.main.name}"), sentence)
        assert pair.main.process == process


class TestFailure:
    def test_a_worker_that_is_killed_ends_the_service_which_comes_back(
        self, pair: Pair, alone: str, shared: list[str]
    ) -> None:
        before = int(prop(pair.main, pair.main.unit, "NRestarts"))
        pair.worker.run(f"systemctl kill --signal KILL {WORKER}")
        until(lambda: prop(pair.worker, WORKER, "SubState") == "running", BACK_S)
        # Nobody notices before somebody asks, and that request is lost.
        with pytest.raises(AssertionError):
            pair.answer()
        until(lambda: int(prop(pair.main, pair.main.unit, "NRestarts")) > before, BACK_S)
        until(lambda: prop(pair.main, pair.main.unit, "ActiveState") == "active", BACK_S)
        assert pair.answer() == alone

    def test_a_deploy_notices_before_somebody_asks(self, pair: Pair, alone: str, shared: list[str]) -> None:
        pair.worker.run(f"systemctl restart {WORKER}")
        assert changes(pair.deploy(pair.shared())) == ["Service | Run tiny, warm"]
        assert pair.answer() == alone
        assert changes(pair.deploy(pair.shared())) == []

    def test_a_service_waits_for_a_worker_that_comes_up_later(
        self, pair: Pair, alone: str, shared: list[str]
    ) -> None:
        pair.worker.run(f"systemctl stop {WORKER}")
        pair.main.run(f"systemctl stop {pair.main.unit}; systemctl start --no-block {pair.main.unit}")
        time.sleep(5)
        assert prop(pair.main, pair.main.unit, "SubState") == "start-pre"
        pair.worker.run(f"systemctl start {WORKER}")
        until(lambda: prop(pair.main, pair.main.unit, "ActiveState") == "active", BACK_S)
        assert pair.answer() == alone

    def test_another_engine_there_is_refused(self, pair: Pair, shared: list[str]) -> None:
        build, process = "/opt/moehost/engine/next/build.json", pair.main.process
        pair.worker.run(
            f'cp {build} /run/build.json && sed -i \'s/"sha256": "[0-9a-f]*/&0/; s/256": "./&0/\' {build}'
        )
        refused = pair.deploy(pair.shared(), "--limit", f"@podman/{pair.main.name}")
        pair.worker.run(f"cp /run/build.json {build}")
        is_refused(refused, "deploy both with the same one")
        assert pair.main.process == process


class TestUndone:
    def test_one_node_again_and_nothing_is_left_of_the_other(
        self, pair: Pair, alone: str, shared: list[str], outside: Neighbour
    ) -> None:
        changed = changes(pair.deploy(pair.main.settings))
        # The service first: a worker that went before would end it, and the owner would be told of a failure.
        order = ["Service | Run tiny, warm", "Worker | Take away workers that nobody wants"]
        assert [name for name in changed if name in order] == order
        assert pair.worker.run("ls /etc/systemd/system/moehost-rpc-*.service 2>/dev/null; true") == ""
        assert pair.worker.run(f"ss -Hltn 'sport = :{PORT}'") == ""
        assert pair.worker.run("nft list tables; ls /etc/moehost/firewall.nft 2>/dev/null; true") == ""
        assert "--rpc" not in pair.main.run(f"systemctl cat {pair.main.unit}")
        assert pair.answer() == alone

    def test_and_that_is_all(self, pair: Pair, alone: str) -> None:
        assert changes(pair.deploy(pair.main.settings)) == []
