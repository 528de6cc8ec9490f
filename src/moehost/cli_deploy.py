"""`moehost deploy`: a deploy over many nodes, batch after batch, and what came of each."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NoReturn

import click

from moehost import cli_fleet, fleet, results, show_fleet
from moehost.cli_fleet import limit_option
from moehost.deploying import Deployed, Deploys
from moehost.fleet import Row
from moehost.results import label
from moehost.rolling import STEPS, RollingError, Rollout, Router, RouterError, Step, batch_size
from moehost.settings import Node
from moehost.terminal import FAILED, say, stop

FOLDER = "deploys"


@click.command()
@click.argument("inventory", default="inventory")
@limit_option
@click.option("--serial", metavar="N|N%", help="Nodes of a batch: so many may be away at once. All, if not given.")
@click.option("--max-failures", type=click.IntRange(1), help="No batch begins after so many failures.  [default: 1]")
@click.option("--at-once", type=click.IntRange(1), default=16, show_default=True, help="Deploys at the same time.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@click.option("--dry", is_flag=True, help="Only say what would change; nothing is drained.")
@click.option("--json", "as_json", is_flag=True, help="The table for programs.")
def deploy(
    inventory: str,
    limits: tuple[str, ...],
    serial: str | None,
    max_failures: int | None,
    at_once: int,
    yes: bool,
    dry: bool,
    as_json: bool,
) -> None:
    """Deploy to the nodes of INVENTORY, in batches, each in the order that the inventory has.

    A batch is drained where there is a router. Then each of its nodes is deployed, must pass the gate (its services
    answer, with the engine that was wished, from the cards), and gets requests again. A node that fails stays
    drained; the others go on. What was interrupted is finished by the next run. Ends with 1 when a node failed or
    was not touched, 2 on bad input.

    \b
    Example:
        moehost deploy
        moehost deploy --serial 1
        moehost deploy --limit gpu_nodes --serial 25% --max-failures 2 --yes
        moehost deploy --dry --json | jq '.nodes | map_values([.roles[].changed[]])'
    """
    nodes = _right(inventory, limits)
    try:
        size = batch_size(serial, len(nodes)) if serial else len(nodes)
    except RollingError as error:
        stop(f"--serial: {error}")
    if not (yes or dry):
        _ask(list(nodes), size)
    folder = results.new(results.ROOT / FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(nodes, cli_fleet.router_of(inventory), Deploys(inventory, folder, dry, at_once, _heard))
    rollout = Rollout(list(nodes), size, max_failures or 1, ("deploy",) if dry else STEPS)
    run.through(rollout)
    rows = run.rows(rollout, inventory)
    if rollout.untouched:
        say(f"not touched, since {len(rollout.failures)} failed: {', '.join(rollout.untouched)}")
    (folder / "deploy.json").write_text(json.dumps({row.node: row.to_json() for row in rows}, indent=2) + "\n")
    cli_fleet.show(rows, as_json, untouched=rollout.untouched, logs=str(folder))
    say(f"what pyinfra said is in {folder}")
    if any(row.outcome != "ok" for row in rows):
        sys.exit(FAILED)


def _right(inventory: str, limits: tuple[str, ...]) -> dict[str, Node]:
    """The nodes that are meant; ends before anything is touched where the settings of one are wrong."""
    nodes = cli_fleet.wished(inventory, limits)
    mistakes = [f"{name}: {line}" for name, lines in nodes.items() if isinstance(lines, list) for line in lines]
    if mistakes:
        stop(*mistakes)
    return {name: node for name, node in nodes.items() if isinstance(node, Node)}


def _ask(names: list[str], size: int) -> None:
    for at in range(0, len(names), size):
        say(f"batch {at // size + 1}: {', '.join(names[at : at + size])}")
    if not sys.stdin.isatty():
        stop("nobody can be asked here; --yes deploys, --dry only says what would change")
    if not click.confirm("moehost: deploy to these nodes?", err=True):
        stop("nothing was touched", code=FAILED)


def _heard(event: dict[str, Any]) -> None:
    if event.get("role"):
        say(show_fleet.role(event))


class _Run:
    """The steps of a rollout as they are done, side by side, and what was found on the way."""

    def __init__(self, nodes: Mapping[str, Node], router: Router, deploys: Deploys) -> None:
        self._nodes, self._router, self._deploys = nodes, router, deploys
        self._deployed: dict[str, Deployed] = {}

    def through(self, rollout: Rollout) -> None:
        """Do all steps; Ctrl-C and SIGTERM end what is under way."""
        before = signal.signal(signal.SIGTERM, _interrupt)
        # A thread for each node: how many are deployed at the same time, the deploys know themselves.
        with ThreadPoolExecutor(len(self._nodes)) as pool:
            try:
                self._do(rollout, pool)
            except KeyboardInterrupt:
                say("interrupted: ending what is under way; the next deploy goes on")
                rollout.interrupt("the run was interrupted")
                self._deploys.end()
            finally:
                signal.signal(signal.SIGTERM, before)

    def _do(self, rollout: Rollout, pool: ThreadPoolExecutor) -> None:
        under_way: dict[Future[dict[str, str]], Step] = {}
        while not rollout.over:
            under_way |= {pool.submit(self._step, step): step for step in rollout.next()}
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for each in done:
                step, error = under_way.pop(each), each.exception()
                # What nobody has thought of ends this step, and no other node's.
                unforeseen = dict.fromkeys(step.nodes, f"{type(error).__name__}: {error}")
                failed = unforeseen if error else each.result()
                for node, reason in failed.items():
                    say(f"{node}: {step.kind} failed: {reason}")
                rollout.ended(step, failed)

    def _step(self, step: Step) -> dict[str, str]:
        """Do a step; why it failed, for those of its nodes for which it did."""
        first = step.nodes[0]
        if step.kind == "deploy":
            made = self._deployed[first] = self._deploys.deploy(first, label(first))
            return {first: made.failed} if made.failed else {}
        if step.kind == "gate":
            says = fleet.gate(self._deployed[first].texts, self._nodes[first])
            return {first: says} if says else {}
        try:
            (self._router.drain if step.kind == "drain" else self._router.ready)(step.nodes)
        except RouterError as error:
            return dict.fromkeys(step.nodes, str(error))
        return {}

    def rows(self, rollout: Rollout, inventory: str) -> list[Row]:
        """A row for each node; those that failed after they were reached are asked once more."""
        again = [
            name
            for name, made in self._deployed.items()
            if made.roles and not made.texts and name in rollout.failures
        ]
        answers, _ = cli_fleet.asked(again, inventory)
        drained = cli_fleet.drained_now(self._router)
        rows = []
        for name, node in self._nodes.items():
            row = Row(name, "untouched" if name in rollout.untouched else "ok", rollout.failures.get(name))
            if row.failure:
                row.outcome = "failed"
            texts = answers.get(name, {})
            if made := self._deployed.get(name):
                row.roles, row.duration_s = made.roles, round(made.duration_s, 1)
                texts = made.texts or texts
            rows.append(cli_fleet.seen(row, texts, node, drained))
        return rows


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
