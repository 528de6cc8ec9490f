"""`moehost tune`: a service's fastest configuration on its node, found by real launches."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import click

from moehost import calibration, launches, probes, results, services, settings, show_tune
from moehost.measured import disk_gb_s
from moehost.plan import REFUSALS
from moehost.probes import Outcome, Probe
from moehost.settings import KvType
from moehost.space import Order, Space
from moehost.terminal import FAILED, host_of, pyinfra, pyinfra_program, reason, say, stop
from moehost.tune import BRANCHES, Result, follow

LOOK, DEPLOY = "roles/tune/look.py", "roles/tune/tune.py"
UNIT = "moehost-tune.service"
POLL_S = 0.3


@click.command()
@click.argument("host", metavar="@HOST")
@click.option("--service", "name", help="The service; not needed where there is only one.")
@click.option("--only", help=f"Branches of the search, of {','.join(BRANCHES)}; all if not given.")
@click.option("--kv-types", help="Types of the KV cache that you allow; the service's own and q8_0 if not given.")
@click.option("--repetitions", type=click.IntRange(2, 50), default=5, show_default=True, help="Rounds of a probe.")
@click.option("--seed", default=0, show_default=True, help="Decides the order of what is measured in turns.")
@click.option("--resume", type=click.Path(path_type=Path), help="Folder of the search, an older one or a new one.")
@click.option("--yes", is_flag=True, help="Do not ask before the service is stopped.")
@click.option("--json", "as_json", is_flag=True, help="Probes and result for programs.")
@click.option("--inventory", default="inventory", show_default=True, help="Where @HOST is looked up.")
def tune(
    host: str,
    name: str | None,
    only: str | None,
    kv_types: str | None,
    repetitions: int,
    seed: int,
    resume: Path | None,
    yes: bool,
    as_json: bool,
    inventory: str,
) -> None:
    """Find the fastest configuration of a service by real launches of its engine on its node.

    The service stands still meanwhile, and starts again however the search ends. Each finding is kept at once in
    results/NODE/tune-TIME; a search that was cut off goes on from there when the same command is given again. Prints
    what to write into the inventory, and edits nothing. Ends with 1 when nothing could be measured, 2 on bad input.

    \b
    Example:
        moehost tune @epyc.home.arpa
        moehost tune @epyc.home.arpa --service qwen --only threads,ubatch --yes
        moehost tune @epyc.home.arpa --kv-types f16 --json | jq .settings
    """
    chosen = services.choose(host, name, inventory)
    node, service = chosen.node, chosen.service
    if service.runtime == "container":
        stop(f"--service: {service.name} runs in a container, and only native services can be tuned")
    if service.rpc:
        stop(f"--service: {service.name} has layers on other nodes, which a search would leave without a client")
    order = _order(node, service, only, kv_types, repetitions, seed)
    base = results.series(chosen.host)
    made = resume or base / f"tune-{datetime.now():%Y%m%d-%H%M%S}"
    found = _look(host, inventory, order, base)
    folder = _kept(made if resume else None, base, order.key(node, found)) or made
    folder.mkdir(parents=True, exist_ok=True)
    for key, data in (("order", asdict(order)), ("found", found), ("key", order.key(node, found))):
        (folder / f"{key}.json").write_text(json.dumps(data))
    try:
        space = Space.of(order, node, found)
        known = _known(folder)
        end = follow(space, known)
        if isinstance(end, Probe):
            _begin(space, known, folder, found, yes)
            _search(host, inventory, folder, space, len(known))
            known = _known(folder)
            end = follow(space, known)
    except REFUSALS as error:
        stop(f"{host}: {error}")
    if not isinstance(end, Result):
        raise AssertionError("the deploy ended well in the middle of a search")
    data = show_tune.result(space, known, end)
    (folder / "result.json").write_text(json.dumps(data, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(data, indent=2))
    else:
        show_tune.show(space, known, end, folder)
    if end.best is None:
        stop(f"{host}: nothing could be measured: {end.reason}", code=FAILED)


def _order(
    node: settings.Node,
    service: settings.Service,
    only: str | None,
    kv_types: str | None,
    rounds: int,
    seed: int,
) -> Order:
    branches = _listed("--only", only, BRANCHES) if only else BRANCHES
    types = _listed("--kv-types", kv_types, get_args(KvType)) if kv_types else (service.kv_type, "q8_0")
    file = node.calibration_file
    try:
        constants = json.loads(Path(file).expanduser().read_text()) if file else None
        if constants:
            calibration.from_json(constants)
    except (OSError, ValueError) as error:
        stop(f"calibration_file: {file}: {error}")
    return Order(service.name, types, branches, rounds, seed, constants)


def _listed(option: str, text: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    given = tuple(each.strip() for each in text.split(","))
    for each in given:
        if each not in allowed:
            stop(f"{option}: {each!r} is not one of {', '.join(allowed)}")
    return given


def _look(host: str, inventory: str, order: Order, base: Path) -> dict[str, Any]:
    """What the node says of itself; ends where it can't be asked, or lacks something."""
    folder = base / "look"
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "found.json"
    result.unlink(missing_ok=True)
    (folder / "order.json").write_text(json.dumps(asdict(order)))
    done = pyinfra(inventory, "--limit", host_of(host), LOOK, "--data", f"x_folder={folder.resolve()}", "-y")
    if not result.exists():
        stop(f"{host}: {reason(done.stderr)}", code=FAILED)
    found: dict[str, Any] = json.loads(result.read_text())
    if "refusal" in found:
        stop(f"{host}: {found['refusal']}", code=FAILED)
    return found


def _kept(asked: Path | None, base: Path, key: str) -> Path | None:
    """The newest folder of this very search that was cut off; ends where the one asked for is of another."""
    if asked:
        if (asked / "key.json").exists() and json.loads((asked / "key.json").read_text()) != key:
            stop(f"--resume: {asked} is of another engine, model, machine, setting or seed; take a new folder")
        return asked
    for folder in sorted(base.glob("tune-*"), reverse=True):
        file = folder / "key.json"
        if file.exists() and json.loads(file.read_text()) == key and not (folder / "result.json").exists():
            return folder
    return None


def _known(folder: Path) -> list[tuple[Probe, Outcome]]:
    file = folder / probes.FILE
    return probes.parse(file.read_text()) if file.exists() else []


def _begin(space: Space, known: list[tuple[Probe, Outcome]], folder: Path, found: dict[str, Any], yes: bool) -> None:
    """Say what will happen, and ask, if there is somebody to be asked."""
    expected_s = launches.expected_s(space, disk_gb_s(found["machine"]["measured"]))
    unit = space.service.unit
    if known:
        say(f"goes on after {len(known)} probes in {folder}")
    stands = f"{unit} is stopped meanwhile" if found["is_running"] else f"{unit} does not run, and is left so"
    say(f"{stands}: about {max(expected_s / 60, 1):.0f} min in all, as the speed model predicts")
    say(f"keeps each probe in {folder}")
    if not yes and sys.stdin.isatty():
        click.confirm("moehost: begin?", abort=True, err=True)


def _search(host: str, inventory: str, folder: Path, space: Space, done: int) -> None:
    """Run the deploy, with a line for each probe; ends where it fails, with the node's service back."""
    command = [inventory, "--limit", host_of(host), DEPLOY, "--data", f"x_folder={folder.resolve()}", "-y"]
    log = folder / "deploy.log"
    with log.open("w") as talk:
        # A session of its own: what ends this program comes here first, and here is said what follows.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        deploy = subprocess.Popen([pyinfra_program(), *command], stdout=talk, stderr=talk, start_new_session=True)
        try:
            while deploy.poll() is None:
                done = _tell(folder, space, done)
                time.sleep(POLL_S)
        except BaseException:
            deploy.kill()
            deploy.wait()
            # Else the node notices by itself that nobody asks any more.
            pyinfra(inventory, "--limit", host_of(host), "exec", "--", f"systemctl stop {UNIT}")
            say(f"ended; the node starts {space.service.unit} again, and the same command goes on from {folder}")
            raise
    _tell(folder, space, done)
    if deploy.returncode:
        say(f"the same command goes on from {folder}")
        stop(f"{host}: {reason(log.read_text())}", code=FAILED)


def _tell(folder: Path, space: Space, done: int) -> int:
    """Say what is new; how many probes there are."""
    known = _known(folder)
    for number, (probe, outcome) in enumerate(known[done:], done + 1):
        for line in show_tune.told(space, number, probe, outcome):
            say(line)
    return len(known)
