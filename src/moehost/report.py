"""The report of a benchmark: one page, pictures, Markdown, and figures for programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from moehost import plots
from moehost.daily_use import Needs
from moehost.files import replace, write_json
from moehost.runs import Run, Session
from moehost.stats import Interval, PromptTime, Slope, Spread
from moehost.summary import Summary, summarise

TEMPLATES = Path(__file__).parents[2] / "templates"
SUMMARY, PAGE, MARKDOWN, PLOTS = "summary.json", "report.html", "report.md", "plots"
CAPTIONS = {
    "prompt": "Prompt speed over the length of the prompt",
    "decode": "Decode speed over the context",
    "time": "Runs over time",
}
# A decode speed is stable whose change over all contexts is zero, give or take no more than this.
STABLE = 0.05
RATE_NAMES = {"prompt_tok_s": "prompt", "decode_tok_s": "decode"}
KIND_NAMES = {"measured": "", "warm_up": "warm-up", "discarded": "discarded", "failed": "failed"}


def write(session: Session, folder: Path, needs: Needs | None = None, names: Iterable[str] = ()) -> Summary:
    """Writes summary.json, report.html, report.md and plots/ into a folder, each at once.

    + names: further words that must not appear, as of hosts and users
    """
    summary = summarise(session, needs, names)
    figures = plots.draw(summary)
    drawn = {name: plots.svg(figure) for name, figure in figures.items()}
    (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    for name, text in drawn.items():
        replace(folder / PLOTS / f"{name}.svg", text.encode(), durable=False)
        replace(folder / PLOTS / f"{name}.png", plots.png(figures[name]), durable=False)
    replace(folder / MARKDOWN, markdown(summary).encode(), durable=False)
    replace(folder / PAGE, page(summary, drawn).encode(), durable=False)
    # Last, as it says that the others are there.
    write_json(folder / SUMMARY, summary.to_json(), durable=False, indent=2)
    return summary


def page(summary: Summary, drawn: Mapping[str, str]) -> str:
    """The page: one file without scripts that asks no network; `drawn` are the plots as SVG by name."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES / "bench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "tokens": lambda count: f"{count:,}",
        "rate": rate,
        "seconds": seconds,
        "interval": interval,
    }
    # Safe: matplotlib has escaped what it wrote, and all of it is numbers and words of `plots`.
    pictures = [
        (name, CAPTIONS[name], Markup(plots.inline(text, name, CAPTIONS[name])))  # noqa: S704
        for name, text in drawn.items()
    ]
    return environment.get_template("report.html.j2").render(
        summary=summary,
        pictures=pictures,
        findings=findings(summary),
        rows=[(number, run, remark(summary, run)) for number, run in enumerate(summary.session.runs, 1)],
        fingerprint=dict(_flat(summary.session.fingerprint)),
        started=_started(summary),
    )


def markdown(summary: Summary) -> str:
    """The report as Markdown: by length, what it says, run by run."""
    title = f"# {summary.model or 'Benchmark'}: {len(summary.session.measured)} runs"
    lines = [_plain(title), ""]
    if started := _started(summary):
        lines += [f"Measured {started} by moehost.", ""]
    lines += [*(f"- {_plain(each)}" for each in findings(summary)), "", "## By length of the prompt", ""]
    lines += [*lengths_table(summary), "", "## Run by run", "", *runs_table(enumerate(summary.session.measured, 1))]
    lost = [run for run in summary.session.runs if run.kind in ("discarded", "failed")]
    if lost:
        lines += ["", "## Runs that do not count", ""]
        lines += [f"- {run.prompt_tokens:,} tokens: {run.kind}: {_plain(run.reason)}" for run in lost]
    if summary.session.fingerprint:
        lines += ["", "## Machine", ""]
        lines += [f"- {_plain(key)}: {_plain(value)}" for key, value in _flat(summary.session.fingerprint)]
    if summary.argv:
        lines += ["", "```", f"llama-server {' '.join(summary.argv)}".replace("```", ""), "```"]
    return "\n".join(lines) + "\n"


def runs_table(runs: Iterable[tuple[int, Run]]) -> list[str]:
    """Numbered runs as a Markdown table, to two decimals: prompt processing (PP) and token generation (TG)."""
    head = ["| # | prompt (tokens) | PP (tok/s) | TG (tok/s) |", "| ---: | ---: | ---: | ---: |"]
    return head + [
        f"| {number} | {run.prompt_n:,} | {run.prompt_tok_s:.2f} | {run.decode_tok_s:.2f} |" for number, run in runs
    ]


def lengths_table(summary: Summary) -> list[str]:
    """The lengths as a Markdown table: medians with their 95 % intervals, and the middle half of the runs."""
    head = [
        "| prompt (tokens) | runs | PP (tok/s) | middle half | TG (tok/s) | middle half | first token (s) |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    return head + [
        f"| {each.prompt_tokens:,} | {each.prompt_tok_s.count} | {_cell(each.prompt_tok_s)} "
        f"| {_cell(each.decode_tok_s)} | {seconds(each.first_token_s.median)} |"
        for each in summary.lengths
    ]


def _cell(spread: Spread) -> str:
    return f"{rate(spread.median)} {interval(spread.interval)} | {rate(spread.q1)} to {rate(spread.q3)}"


def findings(summary: Summary) -> list[str]:
    """What the runs say, a sentence each."""
    counts = summary.counts
    said = [
        f"{counts['measured']} runs were measured, {counts['discarded']} discarded and {counts['failed']} failed."
    ]
    if not summary.lengths:
        return said
    if summary.slope:
        said.append(_of_slope(summary.slope))
    said += [_of_prompt_time(fit) for fit in summary.prompt_times]
    for each, found in summary.drift.items():
        if found:
            low, high = found.interval
            says = "changed" if low > 0 or high < 0 else "shows no drift"
            change = f"{found.change:+.1%} ({low:+.1%} to {high:+.1%})"
            said.append(f"The {RATE_NAMES[each]} speed {says} over the runs: {change}.")
    marked = len({id(each.run) for each in summary.outliers})
    if marked:
        said.append(f"{marked} {'run is an outlier' if marked == 1 else 'runs are outliers'}; marked, and counted.")
    return said


def _of_slope(slope: Slope) -> str:
    low, high = slope.change_interval
    without_trend = "is stable" if max(-low, high) <= STABLE else "shows no clear trend"
    says = "falls" if high < 0 else "grows" if low > 0 else without_trend
    return (
        f"The decode speed {says} from {slope.shortest:,} to {slope.longest:,} tokens of context: "
        f"{slope.change:+.1%} ({low:+.1%} to {high:+.1%}), or {slope.per_1k:+.3f} tok/s for each 1,000 tokens."
    )


def _of_prompt_time(fit: PromptTime) -> str:
    low, high = fit.per_token_interval
    return (
        f"A prompt of {fit.shortest:,} to {fit.longest:,} tokens takes {fit.fixed_s:.2f} s and "
        f"{fit.per_token_s * 1000:.3g} ms a token ({low * 1000:.3g} to {high * 1000:.3g})."
    )


def remark(summary: Summary, run: Run) -> str:
    """What is to be said of one run: why it does not count, or by what it is an outlier."""
    marks = [f"outlier: {RATE_NAMES[each]}" for each in summary.marks(run)]
    return "; ".join(filter(None, (KIND_NAMES[run.kind], run.reason, *marks)))


def rate(tok_s: float) -> str:
    """Tokens per second, to three or four figures."""
    return f"{tok_s:,.0f}" if tok_s >= 1000 else f"{tok_s:.1f}" if tok_s >= 10 else f"{tok_s:.2f}"


def seconds(duration_s: float) -> str:
    """Seconds to a tenth, short ones to a hundredth."""
    return f"{duration_s:.1f}" if duration_s >= 10 else f"{duration_s:.2f}"


def interval(found: Interval | None) -> str:
    """An interval of rates; one run has none."""
    return f"[{rate(found.low)}, {rate(found.high)}]" if found else ""


def _flat(data: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Nested data as lines of name and value; a command line is shown elsewhere."""
    for key, value in data.items():
        name = f"{above} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
            for number, each in enumerate(value):
                yield from _flat(each, f"{name} {number}")
        elif key != "argv" and value not in (None, "", [], ()):
            yield name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _started(summary: Summary) -> str:
    """Day and time of the first run, in UTC."""
    runs = summary.session.runs
    return f"{datetime.fromtimestamp(runs[0].started_s, UTC):%Y-%m-%d %H:%M} UTC" if runs else ""


def _plain(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(text).split()))
