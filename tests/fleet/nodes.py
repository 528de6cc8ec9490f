"""Sixteen machines to deploy to over SSH: containers of this computer, one of them whole, and three that are no good.

The containers come from one image that has the packages of a deploy and nothing else of it: what a deploy does beside
installing packages is done on each of them. `closed` and `dropped` are addresses at which nobody is.
"""

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moehost import sandbox
from tests.fixtures.neighbour import ADDRESS, neighbour
from tests.fixtures.node import ROOT

IMAGE = "localhost/moehost-fleet:seed"
# In the order of the inventory; four batches of four.
GROUPS = {
    "first": ["epyc", "node01", "node02", "node03"],
    "second": ["broken", "node04", "node05", "node06"],
    "third": ["node07", "node08", "node09", "node10"],
    "last": ["slow", "node11", "closed", "dropped"],
}
NODES = [name for names in GROUPS.values() for name in names]
ABSENT = ("closed", "dropped")
RIGHT = [name for name in NODES if name not in ("broken", *ABSENT)]
SERVICE = {
    "name": "tiny",
    "model": {"name": "tiny-qwen35moe", "source": "file:.sandbox/tiny-qwen35moe.gguf"},
    "context": 8192,
    "ubatch": 512,
    # Others may be at work on this computer, and threads wait for each other in circles.
    "threads": 1,
    "threads_batch": 1,
}
# Of what a deploy brings only the packages stay in the image.
FORGET = (
    "rm -rf /opt/moehost /etc/sysusers.d/moehost.conf /etc/tmpfiles.d/moehost.conf /etc/apt/apt.conf.d/52-moehost "
    "/etc/needrestart /usr/local/lib/moehost /usr/local/libexec/moehost"
)
INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends openssh-server"
# As a machine at the end of a bad line: each command waits before it begins, also where a session has many of them.
SLOW_S = 0.5
SLOW = f"""#!/bin/sh\nsleep {SLOW_S}\nexec /bin/sh "$@"\n"""
SLOW_SH = "cat >/usr/local/bin/sh; chmod 755 /usr/local/bin/sh"
# A package whose installation ends in the middle, whoever tries.
BROKEN = r"""
mkdir -p /root/ill/DEBIAN && cd /root
printf 'Package: ill\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: ill\n' >ill/DEBIAN/control
printf '#!/bin/sh\nexit 1\n' >ill/DEBIAN/postinst
chmod 755 ill/DEBIAN/postinst
dpkg-deb --build ill >/dev/null
! dpkg --install ill.deb 2>/dev/null
"""
MENDED = "printf '#!/bin/sh\n' >/var/lib/dpkg/info/ill.postinst"


def container(name: str) -> str:
    """The container of a node."""
    return f"moehost-fleet-{name}"


def run(name: str, command: str) -> str:
    """What a shell command prints on a node, asked beside SSH."""
    return sandbox.execute(container(name), "sh", "-c", command).strip()


@contextmanager
def image() -> Iterator[None]:
    """The image of the nodes, which `moehost sandbox` takes meanwhile."""
    seed = container("seed")
    sandbox.down(seed)
    sandbox.up(seed, print)
    # With engine and all: packages take most of the time of a first deploy.
    data = {"gpu": "off", "engine": {"source": "package"}}
    inventory = Path(f"/tmp/{seed}.py")
    inventory.write_text(f"nodes = [('@podman/{seed}', {data!r})]\n")
    subprocess.run(["pyinfra", inventory, "deploy.py", "--yes"], cwd=ROOT, check=True, capture_output=True)
    inventory.unlink()
    sandbox.execute(seed, "sh", "-c", f"{INSTALL} && {FORGET}")
    sandbox.run(["podman", "stop", "--time", "10", seed])
    sandbox.run(["podman", "commit", "--quiet", seed, IMAGE])
    sandbox.down(seed)
    os.environ["SANDBOX_IMAGE"] = IMAGE
    try:
        yield
    finally:
        del os.environ["SANDBOX_IMAGE"]
        sandbox.run(["podman", "rmi", "--force", IMAGE])


def _start(name: str, public_key: str) -> str:
    """Start a node from the image; its address."""
    sandbox.down(container(name))
    sandbox.up(container(name), print)
    run(
        name,
        f"install -D -m 600 /dev/null /root/.ssh/authorized_keys; echo '{public_key}' >/root/.ssh/authorized_keys",
    )
    if name == "slow":
        sandbox.execute(container(name), "sh", "-c", SLOW_SH, stdin=SLOW)
    if name == "broken":
        run(name, BROKEN)
    run(name, "systemctl restart ssh.service")
    wanted = "{{.NetworkSettings.IPAddress}}"
    return sandbox.run(["podman", "inspect", "--format", wanted, container(name)]).stdout.strip()


@contextmanager
def fleet(folder: Path) -> Iterator[Path]:
    """All nodes, and their inventory; afterwards they are gone."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    public = (folder / "key.pub").read_text().strip()
    there = [name for name in NODES if name not in ABSENT]
    try:
        with image():
            with ThreadPoolExecutor(4) as pool:
                addresses = dict(zip(there, pool.map(lambda name: _start(name, public), there), strict=True))
            # Their network is there by now.
            with neighbour(4) as nobody:
                # Packets come there, and nothing comes back.
                nobody.run("ip", "route", "add", "blackhole", "10.88.0.1/32")
                addresses["dropped"] = ADDRESS.format(number=4).partition("/")[0]
                addresses["closed"] = addresses["node01"]
                yield _inventory(folder, addresses)
            for name in there:
                sandbox.down(container(name))
    finally:
        for name in there:
            sandbox.down(container(name))


def _inventory(folder: Path, addresses: dict[str, str]) -> Path:
    """The folder of an inventory: what the nodes have in common stands in `group_data/`."""
    inventory = folder / "inventory"
    (inventory / "group_data").mkdir(parents=True)
    common = {
        "gpu": "off",
        "engine": {"source": "package"},
        "ssh_user": "root",
        "ssh_key": str(folder / "key"),
        "ssh_known_hosts_file": str(folder / "known_hosts"),
        "ssh_strict_host_key_checking": "accept-new",
    }
    (inventory / "group_data/all.py").write_text("".join(f"{key} = {value!r}\n" for key, value in common.items()))
    own: dict[str, dict[str, Any]] = {name: {"ssh_hostname": address} for name, address in addresses.items()}
    own["epyc"]["services"] = [SERVICE]
    own["closed"]["ssh_port"] = 2222
    groups = {group: [(name, own[name]) for name in names] for group, names in GROUPS.items()}
    (inventory / "hosts.py").write_text("".join(f"{group} = {those!r}\n" for group, those in groups.items()))
    return inventory
