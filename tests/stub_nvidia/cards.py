"""A node with stub cards, as tests have it: deploys of what belongs to the cards, and containers that get them."""

import copy
import subprocess
from typing import Any

from tests.fixtures import node as fixture
from tests.fixtures.node import ROOT, changes
from tests.stub_nvidia.node import Stub

# What belongs to the cards, without engine, models and services. Where cards don't answer, the gate waits for two
# minutes, as after a boot: here not.
DEPLOY = """
from roles.gpu_gate import gpu_gate, operations
from roles.node import this_node
from roles.nvidia_container_toolkit import nvidia_container_toolkit
from roles.nvidia_driver import nvidia_driver

operations.LIMIT_S = 1
if node := this_node():
    nvidia_driver(node)
    nvidia_container_toolkit(node)
    gpu_gate(node)
"""
# A container of the node's own programs: what a container in a container can't have is left out.
FOLDER = "/srv/stub-container"
PODMAN = (
    "podman --storage-driver vfs --root /var/tmp/stub-podman --runroot /run/stub-podman --cgroup-manager cgroupfs "
    "run --rm --network none --cgroups disabled --volume /usr:/usr:ro --device nvidia.com/gpu=all "
)
ROOTFS = (
    f"mkdir -p {FOLDER}/dev {FOLDER}/etc {FOLDER}/proc {FOLDER}/run {FOLDER}/sys {FOLDER}/tmp {FOLDER}/usr && "
    f"for each in bin lib lib64 sbin; do ln -sfn usr/$each {FOLDER}/$each; done"
)


class Node(fixture.Node):
    """The node under test, with the state of its stub cards, and deploys of what belongs to them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stub = Stub(self.name)

    def deploy_cards(self, settings: dict[str, Any], text: str = DEPLOY) -> subprocess.CompletedProcess[str]:
        """A deploy of these roles only."""
        hosts, deploy = self.folder / "hosts.py", self.folder / "deploy.py"
        hosts.write_text(f"nodes = [({'@podman/' + self.name!r}, {settings!r})]\n")
        deploy.write_text(text)
        command = ["pyinfra", str(hosts), str(deploy), "--yes", "--json"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    def converges(self) -> None:
        """A deploy of these roles succeeds, and then nothing is left to change."""
        assert not changes(self.deploy_cards(self.settings)) or not changes(self.deploy_cards(self.settings))

    def merged_settings(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The scenario's settings with these changes; those of a section are added to it."""
        settings = copy.deepcopy(self.settings)
        for key, value in changes.items():
            settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
        return settings

    def in_container(self, command: str) -> str:
        """What a shell command prints in a container that Podman gives all cards, on the node."""
        return self.run(f"{ROOTFS} && timeout 60 {PODMAN} --rootfs {FOLDER} sh -c '{command}' 2>&1")
