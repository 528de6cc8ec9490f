"""`moehost node`: machines that come to the inventory, and go."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from moehost import nodes, probe, settings, show
from moehost import plan as planning
from moehost.cli_plan import read_headers
from moehost.nodes import HostKey, NodesError
from moehost.planner import DoesNotFit
from moehost.source import HUB_ENDPOINT
from moehost.speed import PUBLISHED
from moehost.store import StoreError
from moehost.terminal import FAILED, ask_host, hosts, say, stop

FACT = "roles.probe.facts.Probe"
CONNECT_S = 10
_inventory = click.option(
    "--inventory", default="inventory", show_default=True, help="Folder of the inventory, with hosts.py in it."
)


@click.group("node")
def node() -> None:
    """Bring a machine into the inventory, or take it out."""


@node.command()
@click.argument("name")
@click.option("--address", required=True, help="Where it is: a host name or an IP address.")
@click.option("--user", default="root", show_default=True, help="User to log in as; others need sudo.")
@click.option("--port", type=click.IntRange(1, 65535), default=22, show_default=True, help="Port of its SSH server.")
@click.option("--key", type=click.Path(exists=True, dir_okay=False), help="Private key; the agent's if not given.")
@click.option("--model", "models", multiple=True, help="Also plan this model there (see `moehost plan --model`).")
@click.option("--accept-host-key", help="The fingerprint that it must have, SHA256:..., read at its console.")
@click.option("--yes", is_flag=True, help="Believe the host key that it shows at first contact.")
@click.option("--dry-run", is_flag=True, help="Only look; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="What was found, for programs.")
@_inventory
def add(
    name: str,
    address: str,
    user: str,
    port: int,
    key: str | None,
    models: tuple[str, ...],
    accept_host_key: str | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    inventory: str,
) -> None:
    """Look at a machine over SSH, and write it into the inventory as NAME.

    Changes nothing on the machine. At first contact its host key is shown and asked about; from then on
    only that key is believed. Ends with 1 when the machine can't be a node, 2 on bad input.

    \b
    Example:
        moehost node add epyc --address 192.0.2.10
        moehost node add epyc --address epyc.home.arpa --user admin --key ~/.ssh/id_ed25519 --dry-run
        moehost node add epyc --address 192.0.2.10 --accept-host-key SHA256:... \\
                         --model hf://OWNER/REPO/PATH@COMMIT
    """
    folder = Path(inventory)
    _refuse_taken(folder, name, nodes.where(address, port))
    host_key = _believed(folder, address, port, accept_host_key, yes)
    # pyinfra runs from this folder; a path in it stays good when the whole folder moves.
    data: dict[str, Any] = {"ssh_hostname": address, "ssh_port": port, "ssh_user": user}
    data |= {"ssh_key": key} if key else {}
    data |= {"ssh_known_hosts_file": str(nodes.known_hosts(folder)), "ssh_strict_host_key_checking": "yes"}
    texts = _asked(name, data, host_key)
    default = settings.read({})
    found = list(probe.examine(texts, user, default.models_dir))
    if as_json:
        click.echo(
            json.dumps({"host_key": host_key.fingerprint, "findings": [asdict(each) for each in found]}, indent=2)
        )
    errors = [each for each in found if each.level == "error"]
    if not as_json:
        show.findings(name, [each for each in found if each not in errors], everything=True)
    if errors:
        stop(*(f"{name}: {each.area}: {each.says}; {each.fix}" for each in errors), code=FAILED)
    _show_plans(models, texts, as_json)
    if dry_run:
        say("nothing was written, as this is a dry run")
        return
    data |= {"_sudo": True} if texts["uid"].strip() != "0" else {}
    _write(folder, name, data, host_key)


def _refuse_taken(folder: Path, name: str, server: str) -> None:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", name):
        stop(f"NAME: {name!r}: use lower-case letters, digits, dots and dashes, e.g. epyc or epyc.home.arpa")
    if not (folder / "hosts.py").is_file():
        stop(f"{folder / 'hosts.py'}: there is no such file; --inventory names its folder")
    if "_nodes.hosts(__file__)" not in (folder / "hosts.py").read_text():
        stop(f"{folder / 'hosts.py'}: does not read what is added; write this line at its end: {nodes.READS_THEM}")
    if name in hosts(str(folder)) and not nodes.lacks_key(folder, name, server):
        where = nodes.path_of(folder, name)
        mend = f"`moehost node remove {name}` first" if where.exists() else "edit it there, or take another name"
        stop(f"{name}: is in the inventory, in {where if where.exists() else folder / 'hosts.py'}; {mend}")


def _believed(folder: Path, address: str, port: int, wanted: str | None, yes: bool) -> HostKey:
    """The key of the machine, once somebody vouches for it: an earlier visit, the options, or a person."""
    where = nodes.where(address, port)
    try:
        socket.create_connection((address, port), CONNECT_S).close()
    except OSError as error:
        stop(f"{where}: can't be reached ({error.strerror or error}); is it on, and is its SSH server?", code=FAILED)
    scan = ["ssh-keyscan", "-T", str(CONNECT_S), "-p", str(port), "-t", "ed25519,ecdsa,rsa", "--", address]
    try:
        offered = nodes.host_keys(subprocess.run(scan, capture_output=True, text=True).stdout)
    except FileNotFoundError:
        stop("ssh-keyscan: is not on this computer; apt-get install openssh-client", code=FAILED)
    if not offered:
        stop(f"{where}: shows no host key; is this port an SSH server's?", code=FAILED)
    trusted = nodes.known(folder, where)
    if trusted:
        for key in offered:
            if key in trusted:
                return key
        stop(
            f"{where}: its host key is {offered[0].fingerprint}, not {trusted[0].fingerprint} as known; if it was "
            f"installed anew: ssh-keygen -R '{where}' -f {nodes.known_hosts(folder)}, then again",
            code=FAILED,
        )
    if wanted:
        for key in offered:
            if key.fingerprint == wanted:
                return key
        shown = ", ".join(f"{key.fingerprint} ({key.type})" for key in offered)
        stop(f"{where}: has no host key {wanted}; it shows {shown}; compare them at its console", code=FAILED)
    key = offered[0]
    if not yes:
        say(f"{where} shows the host key {key.fingerprint} ({key.type})")
        if not sys.stdin.isatty():
            stop(f"{where}: nobody is here to vouch for that key; give --accept-host-key {key.fingerprint}, or --yes")
        if not click.confirm("Is it this machine's?", err=True):
            stop(f"{where}: its host key was not accepted")
    return key


def _asked(name: str, data: dict[str, Any], key: HostKey) -> dict[str, str]:
    """What the machine says of itself, asked by pyinfra with the very data that will be written."""
    with TemporaryDirectory() as folder:
        trusted, inventory = Path(folder, "known_hosts"), Path(folder, "hosts.py")
        trusted.write_text(key.line(name))
        inventory.write_text(f"hosts = [({name!r}, {data | {'ssh_known_hosts_file': str(trusted)}!r})]\n")
        texts, reason = ask_host(name, str(inventory), FACT)
    if not texts or not any(texts.values()):
        lacks = re.search("auth|password|private key", reason or "", re.IGNORECASE)
        user, where = data["ssh_user"], data["ssh_hostname"]
        mend = (
            f"bring your key there: ssh-copy-id -p {data['ssh_port']} {user}@{where}" if lacks else "try ssh yourself"
        )
        stop(f"{name}: can't be asked: {reason or 'it gave no answer'}; {mend}", code=FAILED)
    return dict(texts)


def _show_plans(models: Sequence[str], texts: dict[str, str], quiet: bool) -> None:
    for model in models:
        wish = {"name": "planned", "model": {"name": "planned", "source": "file:///planned.gguf"}}
        try:
            found, _ = read_headers(model, HUB_ENDPOINT, None)
            service = settings.read({"services": [wish]}).services[0]
            machine = probe.hardware(texts)
            made = planning.make(service, found.headers[0].name, found, machine, "ik", PUBLISHED)
            if not quiet:
                show.plan(made, explain=False)
        except DoesNotFit as lack:
            say(f"{model}: does not fit: {lack}")
        except (ValueError, OSError, StoreError) as error:
            stop(str(error))


def _write(folder: Path, name: str, data: dict[str, Any], key: HostKey) -> None:
    try:
        path = nodes.add(folder, name, data, key)
    except (NodesError, OSError) as error:
        stop(str(error), code=FAILED)
    say(f"wrote {path}; give it services there (docs/settings.md), then: pyinfra {folder} deploy.py --limit {name}")


@node.command()
@click.argument("name")
@_inventory
def remove(name: str, inventory: str) -> None:
    """Take a machine that `add` wrote out of the inventory; the machine itself is left as it is.

    \b
    Example:
        moehost node remove epyc
    """
    try:
        nodes.remove(Path(inventory), name)
    except (NodesError, OSError) as error:
        stop(str(error))
    say(f"{name} is out of {inventory}; the machine is left as it is, and goes on serving")
