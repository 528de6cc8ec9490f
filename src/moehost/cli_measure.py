"""`moehost measure`: what a node's memory, disk and cards really do, beside what they promise."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from moehost import measured, settings
from moehost.hardware import HardwareError, Node, node_from_facts
from moehost.measured import Hardware
from moehost.memory_modules import modules
from moehost.terminal import FAILED, ask_host, data_of, host_of, pyinfra, reason, say, stop

FACT = "roles.doctor.Doctor"
DEPLOY = "roles/measure/measure.py"
MEMORY_S = 4.0


@click.command()
@click.argument("host", metavar="@HOST")
@click.option("--path", help="File or folder whose largest file is read; the model store if not given.")
@click.option("--disk-seconds", type=click.FloatRange(0.1, 600), default=10.0, show_default=True)
@click.option("--install-compiler", is_flag=True, help="Let apt install gcc and libc6-dev where no compiler is.")
@click.option("--json", "as_json", is_flag=True, help="What measured.json holds, for programs.")
@click.option("--inventory", default="inventory", show_default=True, help="Where @HOST is looked up.")
def measure(
    host: str, path: str | None, disk_seconds: float, install_compiler: bool, as_json: bool, inventory: str
) -> None:
    """Measure a node's memory, disk and links to the cards; the planner uses what was found.

    Takes half a minute and the fourth part of the free memory. Keeps /etc/moehost/measured.json on the node
    and nothing else; reads models, writes none. Ends with 1 when the node could not measure, 2 on bad input.

    \b
    Example:
        moehost measure @epyc.home.arpa
        moehost measure @epyc.home.arpa --install-compiler
        moehost measure @epyc.home.arpa --path /srv/models/qwen --json | jq .memory.read_gb_s
    """
    if not host.startswith("@"):
        stop(f"{host}: write the host as @{host}")
    name, data = host_of(host), data_of(host, inventory)
    if path is not None and not path.startswith("/"):
        stop(f"--path: {path!r} is not absolute; write the path on the node, e.g. /srv/models")
    try:
        where = path or settings.read(data).models_dir
    except settings.SettingsError as error:
        stop(*(f"{name}: {line}" for line in error.lines))
    node, job = _job(host, name, inventory)
    job |= {"disk": where, "disk_s": disk_seconds, "disk_is_asked_for": path is not None}
    say(f"measures memory, disk and cards of {name}: about {5 * MEMORY_S + disk_seconds:.0f} s")
    found = _found(host, inventory, job, install_compiler)
    if found["servers_running"]:
        say(f"llama-server ran meanwhile ({'; '.join(found['servers_running'])}): it disturbs, and was disturbed")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for line in measured.summary(found, node.cpu.numa_nodes, node.cpu.sockets):
        click.echo(line)


def _job(host: str, name: str, inventory: str) -> tuple[Node, dict[str, Any]]:
    """The machine as it says that it is, and what it is asked to measure."""
    texts, why = ask_host(name, inventory, FACT)
    if not texts or not any(texts.values()):
        stop(f"{host}: can't be asked: {why or 'it gave no answer'}", code=FAILED)
    machine = {key.removeprefix("machine."): text for key, text in texts.items() if key.startswith("machine.")}
    try:
        node = node_from_facts(**{**machine, "measured": ""})
    except HardwareError as error:
        stop(f"{host}: {error}", code=FAILED)
    inserted = modules(texts["condition.modules"])
    named = {each.channel for each in inserted}
    promised = measured.promise(
        node.cpu.socket_memory,
        node.cpu.sockets,
        filled=len(inserted) if None in named else len(named),
        mt_s=min((each.mt_s for each in inserted), default=0),
    )
    hardware = Hardware(node.cpu.model, node.cpu.cores, node.memory_mib)
    return node, {
        "path": measured.PATH,
        "hardware": asdict(hardware),
        "promised": asdict(promised) if promised else None,
        "memory_s": MEMORY_S,
    }


def _found(host: str, inventory: str, job: dict[str, Any], install_compiler: bool) -> dict[str, Any]:
    """What the node has measured; ends where it could not."""
    with tempfile.TemporaryDirectory(prefix="moehost-measure-") as folder:
        Path(folder, "job.json").write_text(json.dumps(job))
        more = ("--data", "x_compiler=1") if install_compiler else ()
        done = pyinfra(inventory, "--limit", host_of(host), DEPLOY, "--data", f"folder={folder}", *more, "-y")
        result = Path(folder, "result.json")
        if not result.exists() or not result.read_text().strip():  # it was ended, or not reached
            stop(f"{host}: {reason(done.stderr)}", code=FAILED)
        found: dict[str, Any] = json.loads(result.read_text())
    if "refusal" in found:
        stop(f"{host}: {found['refusal']}", code=FAILED)
    return found
