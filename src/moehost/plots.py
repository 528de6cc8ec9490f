"""Plots of a benchmark: prompt speed over the length, decode over the context, runs over time."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from moehost.stats import Rate
from moehost.summary import Summary

# Colours of a light page by the names of the report's CSS variables, which take their places within a page.
INK, MUTED, LINE, CARD = "#1d2430", "#5d6879", "#dfe4eb", "#fffffe"
BLUE, ORANGE, RED = "#2262c5", "#c2570d", "#b3261f"
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", CARD: "card", BLUE: "blue", ORANGE: "orange", RED: "red"}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moehost",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": CARD,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": CARD,
    "figure.constrained_layout.use": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.columnspacing": 1.0,
    "legend.handletextpad": 0.4,
    "legend.labelcolor": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}
SIZE_INCH = (5.2, 3.3)
PNG_DPI = 200
# Decode rates are shown at least this far to either side of their mean: a percent of noise is no cliff.
LEAST_RANGE = 0.15
# From here on lengths are told in thousands.
K = 1000


def draw(summary: Summary) -> dict[str, Figure]:
    """The plots by the names of their files; none of a benchmark without measured runs."""
    if not summary.lengths:
        return {}
    with mpl.rc_context(STYLE):
        return {"prompt": _prompt(summary), "decode": _decode(summary), "time": _time(summary)}


def svg(figure: Figure) -> str:
    """A file of its own; the same runs give the same text."""
    return _rendered(figure, format="svg", metadata={"Date": None}).decode()


def png(figure: Figure) -> bytes:
    """A picture for posts."""
    return _rendered(figure, format="png", dpi=PNG_DPI)


def inline(text: str, name: str, says: str) -> str:
    """An SVG as part of a page: its size and colours are the page's, its ids nobody else's, `says` is read aloud."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg role="img" aria-label="{says}" \1>', text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def _rendered(figure: Figure, **how: Any) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, **how)
    return buffer.getvalue()


def _axes(figure: Figure, ylabel: str) -> Axes:
    axes = figure.add_subplot()
    axes.set_ylabel(ylabel)
    axes.tick_params(length=0)
    return axes


def _prompt(summary: Summary) -> Figure:
    """Prompt rate over the length: runs, medians with intervals, fitted times, the prediction, the threshold."""
    figure = Figure(figsize=SIZE_INCH)
    axes = _axes(figure, "prompt, tok/s")
    _dots(axes, summary, "prompt_tok_s", BLUE, [run.prompt_n for run in summary.session.measured])
    lengths = [each.prompt_tokens for each in summary.lengths]
    medians = np.array([each.prompt_tok_s.median for each in summary.lengths])
    # One run has no interval: the bar has no length.
    intervals = np.array([each.prompt_tok_s.interval or (each.prompt_tok_s.median,) * 2 for each in summary.lengths])
    bars = np.abs(intervals.T - medians)
    axes.errorbar(lengths, medians, bars, fmt="_", color=BLUE, markersize=9, markeredgewidth=2, label="median, 95 %")
    for index, fit in enumerate(summary.prompt_times):
        across = np.geomspace(fit.shortest, fit.longest, 60).tolist()
        axes.plot(
            across,
            [tokens / fit.at(tokens) for tokens in across],
            color=BLUE,
            linewidth=1,
            label=None if index else "fitted time",
        )
    if summary.prediction:
        # Points without a line: between them there may be the threshold, where the prediction jumps.
        axes.plot(
            *zip(*summary.prediction.items(), strict=True), "D", color=ORANGE, markersize=5.5, label="predicted"
        )
    axes.set_xscale("log", base=2)
    _token_ticks(axes, lengths)
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    if summary.threshold:
        axes.axvline(summary.threshold, color=MUTED, linewidth=1, linestyle=":")
        says = f" experts go to the card\n from {summary.threshold:,} tokens on"
        axes.text(summary.threshold, 0.02, says, transform=axes.get_xaxis_transform(), color=MUTED, fontsize=8)
    axes.set_xlabel("tokens of the prompt")
    figure.legend(loc="outside upper left", ncols=5)
    return figure


def _decode(summary: Summary) -> Figure:
    """Decode rate over the context, with the fitted slope and its band."""
    figure = Figure(figsize=SIZE_INCH)
    axes = _axes(figure, "decode, tok/s")
    runs = summary.session.measured
    _dots(axes, summary, "decode_tok_s", BLUE, [run.prompt_n for run in runs])
    rates = [run.decode_tok_s for run in runs]
    mean = float(np.mean(rates))
    if slope := summary.slope:
        tokens = np.linspace(slope.shortest, slope.longest, 60)
        line = [slope.at(each) for each in tokens]
        lows, highs = [band.low for _, band in line], [band.high for _, band in line]
        axes.fill_between(tokens, lows, highs, color=BLUE, alpha=0.15, linewidth=0, label="95 % of the line")
        axes.plot(tokens, [rate for rate, _ in line], color=BLUE, linewidth=1.6, label="fitted")
    low, high = min(*rates, (1 - LEAST_RANGE) * mean), max(*rates, (1 + LEAST_RANGE) * mean)
    axes.set_ylim(low - 0.05 * mean, high + 0.05 * mean)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: _tokens(tokens)))
    axes.set_xlabel("tokens of the context")
    figure.legend(loc="outside upper left", ncols=4)
    return figure


def _time(summary: Summary) -> Figure:
    """Each run against the median of its length, in the order of time; blocks shaded in turn, failures named."""
    figure = Figure(figsize=SIZE_INCH)
    runs = [run for run in summary.session.runs if run.kind != "warm_up"]
    start_s = min(run.started_s for run in runs)
    top, below = figure.subplots(2, sharex=True)
    pairs: Sequence[tuple[Axes, Rate, str, str]] = (
        (top, "prompt_tok_s", "prompt", BLUE),
        (below, "decode_tok_s", "decode", ORANGE),
    )
    medians = {each.prompt_tokens: each for each in summary.lengths}
    measured = summary.session.measured
    minutes = [(run.started_s - start_s) / 60 for run in measured]
    for axes, rate, what, colour in pairs:
        axes.tick_params(length=0)
        axes.set_ylabel(what)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:+.0%}"))
        axes.axhline(0, color=MUTED, linewidth=0.8)
        shares = [getattr(run, rate) / getattr(medians[run.prompt_tokens], rate).median - 1 for run in measured]
        axes.plot(minutes, shares, color=colour, linewidth=0.6, alpha=0.5)
        _points(axes, summary, rate, colour, minutes, shares)
        reach = max(0.05, *(1.15 * abs(share) for share in shares))
        axes.set_ylim(-reach, reach)
        lost = [(run.started_s - start_s) / 60 for run in runs if run.kind != "measured"]
        axes.plot(lost, [-0.93 * reach] * len(lost), "x", color=RED, markersize=5)
        for block in sorted({run.block for run in runs})[1::2]:
            within = [(run.started_s - start_s) / 60 for run in runs if run.block == block]
            axes.axvspan(min(within), max(within), color=MUTED, alpha=0.1, linewidth=0)
    top.set_title("against the median of the same length; blocks shaded in turn", fontsize=9, color=MUTED, loc="left")
    below.set_xlabel("minutes since the first run; x did not count")
    return figure


def _dots(axes: Axes, summary: Summary, rate: Rate, colour: str, tokens: Sequence[float]) -> None:
    rates = [getattr(run, rate) for run in summary.session.measured]
    _points(axes, summary, rate, colour, tokens, rates, label="run")


def _points(
    axes: Axes,
    summary: Summary,
    rate: Rate,
    colour: str,
    across: Sequence[float],
    up: Sequence[float],
    label: str | None = None,
) -> None:
    """A dot for each measured run, and a ring around those that are outliers."""
    axes.plot(across, up, "o", color=colour, alpha=0.45, markersize=4.5, markeredgewidth=0, label=label)
    marked = [i for i, run in enumerate(summary.session.measured) if rate in summary.marks(run)]
    if marked:
        ring: Any = {"markersize": 9, "markerfacecolor": "none", "markeredgecolor": RED}
        axes.plot([across[i] for i in marked], [up[i] for i in marked], "o", label=label and "outlier", **ring)


def _token_ticks(axes: Axes, lengths: Iterable[int]) -> None:
    """Names the lengths that are not too close to the one before, on a logarithmic axis."""
    ticks: list[int] = []
    for tokens in lengths:
        if not ticks or tokens >= 1.3 * ticks[-1]:
            ticks.append(tokens)
    axes.set_xticks(ticks, [_tokens(tokens) for tokens in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _tokens(tokens: float) -> str:
    return f"{tokens:.0f}" if tokens < K else f"{tokens / K:.3g}k"
