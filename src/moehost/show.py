"""Plans for people: ledgers as bars, predictions as ranges, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moehost.dry_run import Difference
from moehost.finding import Finding
from moehost.ledger import Row
from moehost.plan import Plan

GIB_MIB = 1024
BAR_CELLS = 40
# What a bar is made of, in the order of the bar.
PARTS = {
    "dense_mib": ("dense", "blue"),
    "experts_mib": ("experts", "green"),
    "kv_mib": ("KV", "yellow"),
    "state_mib": ("state", "yellow"),
    "compute_mib": ("compute", "magenta"),
    "context_mib": ("CUDA", "magenta"),
    "cache_mib": ("caches", "cyan"),
    "margin_mib": ("margin", "bright_black"),
}
MEANINGS = {
    "dense_mib": "weights that every token reads: attention, shared experts, norms, router, output",
    "experts_mib": "routed experts, whole layers of gate, up and down",
    "kv_mib": "keys and values of the context, layers with full attention only",
    "state_mib": "recurrent state of the other layers, one per slot",
    "compute_mib": "activations, mask, logits, and the copy of one layer of experts that a long prompt carries over",
    "context_mib": "driver and kernels, before anything is loaded",
    "cache_mib": "prompt cache and context checkpoints of the server",
    "margin_mib": "what is left free on purpose",
}


def plan(made: Plan, explain: bool) -> None:
    """Print one plan."""
    console = Console(highlight=False)
    placement, model = made.placement, made.model
    console.print(Text(f"{model.name} ({model.architecture}, {len(model.main_layers)} layers)", style="bold"))
    console.print(_ledger(placement.rows))
    console.print(_legend())
    if explain:
        for key, meaning in MEANINGS.items():
            sizes = ", ".join(f"{r.device} {getattr(r, key)} MiB" for r in placement.rows if getattr(r, key))
            if sizes:
                console.print(f"  {PARTS[key][0]:8} {sizes}: {meaning}", soft_wrap=True)
    for device, layers in placement.experts.items():
        if layers:
            console.print(f"experts on {device}: {_ranges(layers)} ({len(layers)} layers)", soft_wrap=True)
    decode = placement.decode
    console.print(
        f"predicted decode: [bold]{decode.expected:.1f} tok/s[/] (between {decode.low:.1f} and {decode.high:.1f})"
    )
    rates = ", ".join(f"{rate:.0f} tok/s at {tokens} tokens" for tokens, rate in placement.prompt_tok_s.items())
    console.print(f"predicted prompt: {rates}", soft_wrap=True)
    for reason in placement.why:
        console.print(f"why: {reason}", soft_wrap=True, markup=False)
    for warning in placement.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
    words = " ".join(word if word.replace("-", "").isalnum() else f"'{word}'" for word in made.arguments)
    env = "".join(f"{key}={value} " for key, value in placement.env.items())
    spread = "numactl --interleave=all " if placement.is_interleaved else ""
    console.print(f"{env}{spread}llama-server {words}", soft_wrap=True, markup=False)


def comparison(plans: Mapping[str, Plan]) -> None:
    """Print plans of the same model and machine side by side."""
    table = Table(title="predicted, not measured")
    table.add_column("")
    for name in plans:
        table.add_column(name, justify="right")
    made = [each.placement for each in plans.values()]
    table.add_row(
        "decode, tok/s", *(f"{p.decode.expected:.1f} ({p.decode.low:.1f}-{p.decode.high:.1f})" for p in made)
    )
    for tokens in made[0].prompt_tok_s:
        table.add_row(f"prompt of {tokens}, tok/s", *(f"{p.prompt_tok_s[tokens]:.0f}" for p in made))
    table.add_row("ubatch", *(str(p.offload.ubatch) for p in made))
    by_device = [{row.device: row for row in p.rows} for p in made]
    for device in max(by_device, key=len):
        table.add_row(f"{device}: layers of experts", *(str(len(p.experts.get(device, ()))) for p in made))
        free = (f"{rows[device].free_mib / GIB_MIB:.1f}" if device in rows else "" for rows in by_device)
        table.add_row(f"{device}: free, GiB", *free)
    Console(highlight=False).print(table)


def verification(differences: Sequence[Difference]) -> None:
    """Print the ledger beside what an engine has allocated."""
    table = Table(title="the ledger beside the engine's own buffers, MiB")
    for heading in ("device", "what", "ledger", "engine", "per cent", ""):
        table.add_column(heading, justify="left" if heading in ("device", "what", "") else "right")
    for each in differences:
        engine = "not said" if each.engine_mib is None else f"{each.engine_mib:.1f}"
        error = "" if each.per_cent is None else f"{each.per_cent:+.2f}"
        verdict = "fits" if each.is_within else "differs"
        table.add_row(each.device, each.what, f"{each.ledger_mib:.1f}", engine, error, verdict)
    Console(highlight=False).print(table)


def _ledger(rows: tuple[Row, ...]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for heading in ("device", "", "used", "of GiB", "free"):
        table.add_column(heading, justify="left" if heading in ("device", "") else "right")
    for row in rows:
        used = row.capacity_mib - row.free_mib
        cells = (f"{value / GIB_MIB:.1f}" for value in (used, row.capacity_mib, row.free_mib))
        table.add_row(row.device, _bar(row), *cells)
    return table


def _bar(row: Row) -> Text:
    bar, filled = Text(), 0.0
    for key, (_, colour) in PARTS.items():
        start, filled = round(filled), filled + getattr(row, key) / row.capacity_mib * BAR_CELLS
        bar.append("█" * (round(filled) - start), style=colour)
    bar.append("░" * (BAR_CELLS - len(bar)), style="bright_black")
    return bar


def _legend() -> Text:
    legend, seen = Text("  "), set()
    for name, colour in PARTS.values():
        legend.append(f"█ {name}  " if colour not in seen else f"{name}  ", style=colour)
        seen.add(colour)
    return legend


def _ranges(layers: tuple[int, ...]) -> str:
    """Layer numbers as people write them: 0-12,20."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def releases(found: Mapping[str, Any]) -> None:
    """Print the releases of a node's engine."""
    table = Table(box=None, padding=(0, 1))
    for heading in ("", "release", "version", "built", "CUDA", "for", "took"):
        table.add_column(heading)
    for each in found["releases"]:
        links = [link for link in ("current", "next", "previous") if found[link] == each["name"]]
        if "next" in links and "current" in links:
            links.remove("next")
        table.add_row(
            ", ".join(links),
            each["name"],
            str(each.get("version", "")).removeprefix("version: "),
            str(each.get("built", ""))[:10],
            each.get("cuda") or "no",
            ", ".join(f"sm_{capability}" for capability in each.get("architectures", [])) or "CPU",
            f"{each['duration_s']} s" if "duration_s" in each else "",
        )
    # Names are to be copied: no cell is cut off, whatever the width of the terminal.
    Console(highlight=False, width=200).print(table if found["releases"] else "there is no release")


def findings(host: str, found: Sequence[Finding], everything: bool) -> None:
    """Print what was found out about a host: the worst first, with what mends it; what is fine in one line."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    counts = {level: sum(each.level == level for each in found) for level in ("error", "warning")}
    named = ", ".join(f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count)
    console.print(Text(f"{host}: {named or 'no errors, no warnings'}", style="bold"))
    for level, colour in (("error", "red"), ("warning", "yellow"), ("ok", "green")):
        for each in found:
            if each.level == level and (everything or level != "ok"):
                console.print(Text.assemble(f"  {level:9}", style=colour), f"{each.area}: {each.says}", sep="")
                if each.fix:
                    console.print(f"           fix: {each.fix}")
    fine = dict.fromkeys(each.area for each in found)
    for each in found:
        if each.level != "ok":
            fine.pop(each.area, None)
    if fine and not everything:
        console.print(f"  {len(fine)} {'areas are' if len(fine) > 1 else 'area is'} fine: {', '.join(fine)}")
