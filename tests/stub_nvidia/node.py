"""The stub of NVIDIA's cards on a container node: how it gets there, and how its state is changed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER, URL = "/srv/stub-nvidia", "http://127.0.0.1:8731"
FILES = ["build.py", "packages.py", "ubuntu.py", "on_node"]
SOURCE = "/etc/apt/sources.list.d/stub-ubuntu.list"


def run(name: str, command: str) -> str:
    """What a shell command prints on a node; it must succeed."""
    done = subprocess.run(["podman", "exec", name, "sh", "-c", command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {command}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def prepare(name: str, cards: int, *, is_ubuntu: bool = False) -> dict[str, Any]:
    """Give a running container cards and repositories; the settings that a node of moehost then needs.

    + is_ubuntu: whether it is to say that it is Ubuntu 24.04; its archive is then one with stub packages
    """
    run(name, f"rm -rf {FOLDER} && mkdir -p {FOLDER}")
    for each in FILES:
        subprocess.run(["podman", "cp", HERE / each, f"{name}:{FOLDER}/{each}"], check=True, capture_output=True)
    if is_ubuntu:
        run(name, f"sh {FOLDER}/on_node/dress-as-ubuntu")
    keys = json.loads(run(name, f"sh {FOLDER}/on_node/prepare"))
    Stub(name).set(bus=cards, cards=cards)
    if is_ubuntu:
        archive(name, "ubuntu")
    nvidia = {"toolkit_repository": f"{URL}/libnvidia-container/stable/deb", "toolkit_key": keys["toolkit"]}
    # Ubuntu's driver is from its own archive: NVIDIA's repository is not even there.
    engine = {"cuda_repository": f"{URL}/cuda/repos", "cuda_key": keys.get("cuda", "0" * 40)}
    return {"engine": engine, "nvidia": nvidia}


def archive(name: str, which: str) -> None:
    """Have the stub Ubuntu take its packages from this one of its archives: `ubuntu` or `old`."""
    run(name, f"echo 'deb [signed-by={FOLDER}/www/{which}.asc] {URL}/{which} ./' >{SOURCE} && apt-get update")


class Stub:
    """The state of the stub on a node; the keys are those of `stub_nvidia.DEFAULTS`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def set(self, **values: object) -> None:
        """Change values of the state, for the programs that ask from now on."""
        run(self.name, "stub-nvidia " + " ".join(f"'{key}={value}'" for key, value in values.items()))

    def reset(self) -> None:
        """Put all values back."""
        run(self.name, "stub-nvidia")

    def reload(self) -> None:
        """What a reboot does to the modules: those that are on disk get loaded."""
        run(
            self.name,
            "modprobe -r nvidia_uvm; modprobe -r nvidia; modprobe -q nvidia && modprobe -q nvidia_uvm; true",
        )
