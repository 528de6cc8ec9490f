"""What an owner reads of a search for the fastest configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from moehost import calibration
from moehost.probes import Measured, Outcome, Probe, gain
from moehost.space import Space
from moehost.tune import Result

Known = Sequence[tuple[Probe, Outcome]]


def told(space: Space, number: int, probe: Probe, outcome: Outcome) -> Iterator[str]:
    """A probe as it comes in, a line for each choice."""
    for row in _rows(space, number, probe, outcome, None):
        verdict = row["failure"] or f"{row['answer_s']:.2f} s a request{_difference(row)}"
        yield f"probe {number} {probe.branch}: {_words(space, row)}: {verdict}"


def result(space: Space, known: Known, end: Result) -> dict[str, Any]:
    """Everything in plain JSON types: `probes` has a row for each choice of each probe, `settings` the result."""
    best = end.best
    rows = [
        row for number, (probe, outcome) in enumerate(known, 1) for row in _rows(space, number, probe, outcome, end)
    ]
    return {
        "service": space.service.name,
        "workload": space.service.workload.model_dump(),
        "probes": rows,
        "settings": best.settings(space.service) if best else None,
        "is_changed": best is not None and replace(best, corrections_mib=()) != space.current,
        "reason": end.reason,
        "constants": calibration.to_json(end.constants) if end.constants else None,
    }


def _rows(space: Space, number: int, probe: Probe, outcome: Outcome, end: Result | None) -> Iterator[dict[str, Any]]:
    workload = space.service.workload
    first = outcome.found[0]
    for choice, found in zip(probe.choices, outcome.found, strict=True):
        plan = space.plan(choice)
        layers = [len(each) for device, each in plan.placement.experts.items() if device != "CPU"]
        row: dict[str, Any] = {"probe": number, "branch": probe.branch, "choice": asdict(choice), "failure": None}
        row |= {"layers_on_cards": sum(layers), "prompt_tok_s": None, "decode_tok_s": None, "answer_s": None}
        row |= {"gain": None, "predicted_s": space.predicted_s(plan, choice, end.constants if end else None)}
        if not isinstance(found, Measured):
            row["failure"] = None if found == "fits" else found
        else:
            times = found.answer_s(workload.answer_tokens)
            row["answer_s"] = sum(times) / len(times)
            row["prompt_tok_s"] = workload.prompt_tokens * len(times) / sum(found.prompt_s)
            row["decode_tok_s"] = len(times) / sum(found.token_s)
            row["samples_s"] = list(times)
            if isinstance(first, Measured) and found is not first:
                row["gain"] = asdict(gain(first.answer_s(workload.answer_tokens), times))
        if probe.kind == "fit" and row["failure"] is None:
            continue
        yield row


def _difference(row: dict[str, Any]) -> str:
    if not row["gain"]:
        return ""
    low, middle, high = (100 * row["gain"][key] for key in ("low", "middle", "high"))
    return f", {middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def _words(space: Space, row: dict[str, Any]) -> str:
    choice = row["choice"]
    words = f"ubatch {choice['ubatch']}, threads {choice['threads']}/{choice['threads_batch']}, {choice['kv_type']}"
    if space.node.gpus:
        words += f", {row['layers_on_cards']} layers on the cards"
    if choice["offload_batch"] is not None:
        words += f", offload batch {choice['offload_batch']}"
    return words + (f", mtp {choice['draft_tokens']}" if choice["draft_tokens"] else "")


def show(space: Space, known: Known, end: Result, folder: Path) -> None:
    """The table of all probes, and what to write into the inventory."""
    data = result(space, known, end)
    workload = space.service.workload
    table = Table(title=f"{workload.prompt_tokens} prompt and {workload.answer_tokens} answer tokens")
    for head in ("probe", "branch", "configuration"):
        table.add_column(head)
    for head in ("PP tok/s", "TG tok/s", "measured s", "predicted s", "gain % (95 %)"):
        table.add_column(head, justify="right")
    for row in data["probes"]:
        cells = [str(row["probe"]), row["branch"], _words(space, row)]
        if row["failure"]:
            cells += ["", "", row["failure"]]
        else:
            cells += [f"{row['prompt_tok_s']:.1f}", f"{row['decode_tok_s']:.1f}", f"{row['answer_s']:.2f}"]
        table.add_row(*cells, f"{row['predicted_s']:.2f}", _difference(row).removeprefix(", ").replace(" %", ""))
    # A pipe has no width of its own, and a row that is cut says nothing.
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
    if end.best is None:
        return
    if not data["is_changed"]:
        click.echo("# the configuration as it is; no other is faster by 2 %")
    click.echo(f"# {len(known)} probes in {folder}; for the service {space.service.name!r} in the inventory:")
    for key, value in data["settings"].items():
        click.echo(f"{json.dumps(key)}: {json.dumps(value)},")
