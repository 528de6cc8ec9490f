"""Whether a machine got faster or slower between two benchmarks; docs/statistics.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from moehost.runs import Run, Session
from moehost.stats import CONFIDENCE, RATES, Interval, Rate, block_levels, in_full_blocks, lengths

Verdict = Literal["faster", "slower", "not distinguishable"]
# Differences that an owner would not notice, relative; machines differ by as much from one day to the next.
TOLERANCE = 0.03


class ComparisonError(ValueError):
    """Two benchmarks that can't be compared; one line that says why."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A rate afterwards over the rate before: geometric mean over the lengths, and its interval.

    + by_length: ratio of the medians, by tokens of the prompt
    """

    ratio: float
    interval: Interval
    verdict: Verdict
    by_length: dict[int, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two benchmarks; `verdict` is slower where either rate is, else faster where either is."""

    prompt: Ratio
    decode: Ratio
    tolerance: float
    blocks_before: int
    blocks_after: int

    @property
    def verdict(self) -> Verdict:
        """Of both rates together, at 95 %."""
        found = {self.prompt.verdict, self.decode.verdict}
        return next((each for each in ("slower", "faster") if each in found), "not distinguishable")


def compare(before: Session, after: Session, tolerance: float = TOLERANCE) -> Comparison:
    """Compares the lengths that both have measured.

    Blocks are what is independent, so the mean log rate of each block is one value, and the interval of the
    difference is Welch's over blocks. The intervals of the two rates hold together at 95 % (Bonferroni). A rate is
    slower where its whole interval lies below 1 - `tolerance`, faster where it lies above 1 + `tolerance`.

    Raises ComparisonError where answers were of different lengths, prompts have no length in common, or one of
    both has fewer than two blocks.
    """
    if not 0 <= tolerance < 1:
        raise ComparisonError(f"tolerance {tolerance}: is relative; write a number from 0 to below 1, such as 0.03")
    answers = [sorted({run.answer_tokens for run in each.measured}) for each in (before, after)]
    if all(answers) and answers[0] != answers[1]:
        was, now = ("/".join(map(str, each)) for each in answers)
        raise ComparisonError(f"answers had {was} tokens before and {now} after; measure again with the same length")
    asked = [lengths(each.measured) for each in (before, after)]
    if not asked[0].keys() & asked[1].keys():
        was, now = (", ".join(map(str, each)) or "none" for each in asked)
        raise ComparisonError(f"no prompt length was measured in both: {was} before and {now} after")
    runs = _shared(*(in_full_blocks(each) for each in _shared(before.measured, after.measured)))
    blocks = [len({run.block for run in each}) for each in runs]
    if min(blocks) < 2:
        raise ComparisonError(
            f"{blocks[0]} full blocks before and {blocks[1]} after: it takes two in each; measure more, or go on "
            "with --resume"
        )
    prompt, decode = (_ratio(*runs, rate, tolerance) for rate in RATES)
    return Comparison(prompt, decode, tolerance, blocks[0], blocks[1])


def _shared(before: Sequence[Run], after: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs of the lengths that both have."""
    both = lengths(before).keys() & lengths(after).keys()
    was, now = ([run for run in each if run.prompt_tokens in both] for each in (before, after))
    return was, now


def _ratio(before: Sequence[Run], after: Sequence[Run], rate: Rate, tolerance: float) -> Ratio:
    was, now = (np.array(list(block_levels(runs, rate).values())) for runs in (before, after))
    difference = now.mean() - was.mean()
    error = np.sqrt(sum(each.var(ddof=1) / len(each) for each in (was, now)))
    low = high = difference
    # Values that are all the same have no error, and Welch's degrees of freedom are then 0 / 0.
    if error > 1e-12:
        found = stats.ttest_ind(now, was, equal_var=False)
        low, high = found.confidence_interval(1 - (1 - CONFIDENCE) / len(RATES))
    interval = Interval(float(np.exp(low)), float(np.exp(high)))
    verdict: Verdict = "not distinguishable"
    if interval.high < 1 - tolerance:
        verdict = "slower"
    elif interval.low > 1 + tolerance:
        verdict = "faster"
    was_median, now_median = (_medians(runs, rate) for runs in (before, after))
    by_length = {tokens: now_median[tokens] / was_median[tokens] for tokens in was_median}
    return Ratio(float(np.exp(difference)), interval, verdict, by_length)


def _medians(runs: Sequence[Run], rate: Rate) -> dict[int, float]:
    return {
        tokens: float(np.median([getattr(run, rate) for run in group])) for tokens, group in lengths(runs).items()
    }
