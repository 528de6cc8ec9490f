"""The node under test, and benchmarks of its service as a user makes them."""

import subprocess
from pathlib import Path

import pytest

from tests.bench_node.quiet import CORES
from tests.fixtures.node import ROOT, Node, instance


class Benched:
    """A node whose service is measured; results go to `folder`."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node, self.folder = node, folder
        self.inventory = str(node.inventory())
        self.host = f"@podman/{node.name}"

    def command(self, *arguments: object) -> list[str]:
        """A command line."""
        return ["moehost", "bench", self.host, "--inventory", self.inventory, *map(str, arguments)]

    def bench(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """One benchmark."""
        return subprocess.run(self.command(*arguments), cwd=ROOT, capture_output=True, text=True)

    def halve(self) -> None:
        """Let the node's control group have half of the processor time that its server's threads want."""
        words = self.node.run(
            f"cat /proc/$(systemctl show --value -p MainPID {self.node.unit})/cmdline | tr '\\0' ' '"
        )
        threads = int(words.split(" -t ")[1].split()[0])
        self._limit(min(threads, CORES) / 2)

    def restore(self) -> None:
        """Let the node have all of it."""
        self._limit(CORES)

    def _limit(self, cores: float) -> None:
        # Podman 4.3 takes no quota of -1, which would be none at all.
        subprocess.run(["podman", "update", "--cpus", str(cores), self.node.name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The first instance of the scenario."""
    return instance(tmp_path_factory.mktemp("inventory"))


@pytest.fixture(scope="module")
def benched(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Benched:
    """Its service, to be measured."""
    return Benched(node, tmp_path_factory.mktemp("benched"))
