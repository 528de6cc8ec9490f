"""How pyinfra reaches a node over SSH: what it sends leaves at once, whatever the inventory says."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.ssh_server import host_data, serving

ROOT = Path(__file__).parents[2]
# pyinfra's command line as it is, and what each connection says of Nagle's algorithm as soon as SSH begins on it.
PROGRAM = """
import socket, sys
from paramiko import Transport
from pyinfra_cli.main import cli

begin = Transport.start_client

def told(transport, *arguments, **options):
    sock = transport.sock
    is_socket = isinstance(sock, socket.socket)
    delay = not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) if is_socket else None
    print("connection", type(transport).__name__, delay, file=sys.stderr)
    return begin(transport, *arguments, **options)

Transport.start_client = told
cli()
"""
# Before the hosts of each inventory.
OWN = "import paramiko\n\n\nclass Own(paramiko.Transport):\n    pass\n\n\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of an SSH server."""
    with serving() as found:
        yield found


def connections(folder: Path, port: int, own: str = "{}", **data: Any) -> list[str]:
    """Of each connection of a run, the class of its transport and whether its socket delays; None without a socket.

    + own: further data of the host, as the inventory spells it
    """
    data = host_data(folder, port) | data
    (folder / "hosts.py").write_text(f"{OWN}nodes = [('node', {data!r} | {own})]\n")
    command = [sys.executable, "-c", PROGRAM, str(folder / "hosts.py"), "exec", "--", "true"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "[node] Connected" in done.stderr
    return [line.removeprefix("connection ") for line in done.stderr.splitlines() if line.startswith("connection ")]


def test_commands_leave_at_once(port, tmp_path):
    assert connections(tmp_path, port) == ["Transport False"]


def test_what_an_inventory_says_of_connections_is_kept_beside_it(port, tmp_path):
    own = "{'ssh_paramiko_connect_kwargs': {'banner_timeout': 20}}"
    assert connections(tmp_path, port, own) == ["Transport False"]


def test_a_transport_of_the_owners_own_counts(port, tmp_path):
    own = "{'ssh_paramiko_connect_kwargs': {'transport_factory': Own}}"
    assert connections(tmp_path, port, own) == ["Own True"]


def test_a_hop_is_as_quick_and_what_comes_through_it_has_no_socket(port, tmp_path):
    (tmp_path / "config").write_text(
        f"Host hop\n  Hostname 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {tmp_path}/key\n"
        f"  UserKnownHostsFile {tmp_path}/known_hosts\n  StrictHostKeyChecking accept-new\n"
        "Host far\n  Hostname 127.0.0.1\n  ProxyJump hop\n"
    )
    found = connections(tmp_path, port, ssh_config_file=str(tmp_path / "config"), ssh_hostname="far")
    assert found == ["Transport False", "Transport None"]


def test_an_inventory_can_still_be_printed(tmp_path):
    (tmp_path / "hosts.py").write_text("nodes = [('node', {'ssh_user': 'root'})]\n")
    command = [Path(sys.executable).with_name("pyinfra"), str(tmp_path / "hosts.py"), "debug-inventory", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0]["data"] == {"ssh_user": "root"}


# What config.py changes of pyinfra and paramiko, and what each change is good for, as those two see it.
CHANGED = """
import inspect, socket
from pyinfra.api import Config, arguments, util
from pyinfra.context import ctx_config

ctx_config.set(Config())
import config

listener = socket.create_server(("127.0.0.1", 0))
sock = socket.create_connection(listener.getsockname())
print(config.sent_at_once(sock).get_security_options().ciphers[0])
print(arguments.all_global_arguments() is arguments.all_global_arguments())
print(util.getframeinfo(inspect.currentframe()).code_context)
"""


def test_each_operation_costs_less() -> None:
    done = subprocess.run([sys.executable, "-c", CHANGED], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["aes128-gcm@openssh.com", "True", "None"], done.stderr
