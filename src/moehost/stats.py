"""What the measured runs of a benchmark say: medians by length, slopes, drift, outliers; docs/statistics.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from moehost.runs import Run

Rate = Literal["prompt_tok_s", "decode_tok_s"]
RATES: tuple[Rate, ...] = ("prompt_tok_s", "decode_tok_s")
CONFIDENCE = 0.95
RESAMPLES = 9999
# The same runs give the same intervals.
SEED = 0
# Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993): scores above are marked.
OUTLYING = 3.5
# Standard deviation of a normal distribution over its median, and its mean, absolute deviation.
SD_BY_MEDIAN_DEVIATION = 1.4826
SD_BY_MEAN_DEVIATION = 1.2533
# A block with fewer of the lengths says too little of how fast the machine was meanwhile.
LEAST_SHARE_OF_BLOCK = 0.5
# Rounds of weighting: the weights no longer change by then.
ROUNDS = 10


class Interval(NamedTuple):
    """Where the true value lies, with the confidence that its maker says."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Several values of one quantity: quartiles, and a bootstrap interval of the median at CONFIDENCE.

    One value has no interval; one of four values reaches from the smallest to the largest (docs/statistics.md).
    """

    count: int
    q1: float
    median: float
    q3: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Length:
    """The runs of one prompt length, in tokens."""

    prompt_tokens: int
    prompt_tok_s: Spread
    decode_tok_s: Spread
    first_token_s: Spread


@dataclass(frozen=True, slots=True)
class Slope:
    """A rate as a line over the tokens of context: through (`mean_tokens`, `mean_tok_s`), blocks made alike.

    + per_1k: tok/s that 1,000 more tokens of context add; negative where they cost
    + change: relative, from the shortest to the longest context; its interval takes the rate at the shortest as given
    + shortest, longest: contexts that were measured, in tokens
    """

    per_1k: float
    per_1k_interval: Interval
    change: float
    change_interval: Interval
    shortest: int
    longest: int
    mean_tokens: float
    mean_tok_s: float
    mean_half_width: float

    def at(self, tokens: float) -> tuple[float, Interval]:
        """The line's rate at a context, and the band where the line lies at CONFIDENCE."""
        away = (tokens - self.mean_tokens) / 1000
        rate = self.mean_tok_s + self.per_1k * away
        # The slope turns the line around its mean point, and the two errors are uncorrelated.
        half = float(np.hypot(self.mean_half_width, away * (self.per_1k_interval.high - self.per_1k)))
        return rate, Interval(rate - half, rate + half)


@dataclass(frozen=True, slots=True)
class PromptTime:
    """Seconds of a prompt as `fixed_s + per_token_s * tokens`, for prompts from `shortest` to `longest` tokens."""

    shortest: int
    longest: int
    fixed_s: float
    fixed_interval: Interval
    per_token_s: float
    per_token_interval: Interval

    def at(self, tokens: float) -> float:
        """Seconds of a prompt."""
        return self.fixed_s + self.per_token_s * tokens


@dataclass(frozen=True, slots=True)
class Drift:
    """How much faster the machine got from the first run to the last, relative; negative where slower."""

    change: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Outlier:
    """A run whose rate is far from the others of its length; `score` is a modified z-score."""

    run: Run
    rate: Rate
    score: float


def by_length(runs: Iterable[Run]) -> list[Length]:
    """What is known of each prompt length, shortest first."""
    return [
        Length(
            tokens,
            prompt_tok_s=spread([run.prompt_tok_s for run in group]),
            decode_tok_s=spread([run.decode_tok_s for run in group]),
            first_token_s=spread([run.first_token_s for run in group]),
        )
        for tokens, group in lengths(runs).items()
    ]


def lengths(runs: Iterable[Run]) -> dict[int, list[Run]]:
    """The runs by the length that was asked for, in tokens, shortest first."""
    groups: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.prompt_tokens].append(run)
    return dict(sorted(groups.items()))


def spread(values: Sequence[float]) -> Spread:
    """Quartiles, and the percentile bootstrap interval of the median (Efron 1979)."""
    q1, median, q3 = (float(each) for each in np.quantile(values, (0.25, 0.5, 0.75)))
    interval = None
    if len(values) > 1:
        found = stats.bootstrap(
            (values,),
            np.median,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(SEED),
        ).confidence_interval
        interval = Interval(float(found.low), float(found.high))
    return Spread(len(values), q1, median, q3, interval)


def decode_slope(runs: Sequence[Run]) -> Slope | None:
    """The decode rate over the context, fitted within blocks by least squares; None where the runs are too few.

    How fast the machine is during a block is taken out: each block has a level of its own, all have one slope.
    """
    tokens = np.array([run.prompt_n for run in runs], dtype=float)
    rates = _rates(runs, "decode_tok_s")
    blocks, of_block = np.unique([run.block for run in runs], return_inverse=True)
    free = len(runs) - len(blocks) - 1
    x, y = (_from_block_means(each, of_block) for each in (tokens, rates))
    squares = float(x @ x)
    if free < 1 or squares == 0:
        return None
    slope = float(x @ y) / squares
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, free))
    error = float(np.sqrt(np.sum((y - slope * x) ** 2) / free))
    half = 1000 * t * error / squares**0.5
    shortest, longest = int(tokens.min()), int(tokens.max())
    mean_tokens, mean_tok_s = float(tokens.mean()), float(rates.mean())
    # Relative change of the whole range, for each tok/s of 1,000 tokens.
    share = (longest - shortest) / 1000 / (mean_tok_s + slope * (shortest - mean_tokens))
    per_1k = 1000 * slope
    return Slope(
        per_1k,
        Interval(per_1k - half, per_1k + half),
        share * per_1k,
        Interval(*sorted((share * (per_1k - half), share * (per_1k + half)))),
        shortest,
        longest,
        mean_tokens,
        mean_tok_s,
        t * error / len(runs) ** 0.5,
    )


def prompt_times(runs: Iterable[Run], threshold: int | None) -> list[PromptTime]:
    """Prompt time over tokens, below and from the threshold of tokens on; one fit where there is no threshold.

    Errors grow with the time, so what is least is the sum of relative squares: weights are 1 / time^2, of the line
    itself, found in rounds. A side with fewer than two lengths, or three runs, has no fit.
    """
    sides: dict[bool, list[Run]] = defaultdict(list)
    for run in runs:
        sides[threshold is not None and run.prompt_n >= threshold].append(run)
    return [fit for _, side in sorted(sides.items()) if (fit := _prompt_time(side))]


def _prompt_time(runs: Sequence[Run]) -> PromptTime | None:
    tokens = np.array([run.prompt_n for run in runs], dtype=float)
    times = np.array([run.prompt_s for run in runs])
    if len(runs) < 3 or len(np.unique(tokens)) < 2:
        return None
    weight_s = times
    for _ in range(ROUNDS):
        design = np.column_stack((1 / weight_s, tokens / weight_s))
        line, *_ = np.linalg.lstsq(design, times / weight_s, rcond=None)
        relative = times / weight_s - design @ line
        # A line that is 0 or less at the shortest prompt, by noise, must not get a weight without bounds.
        weight_s = np.maximum(line[0] + line[1] * tokens, times / 10)
    free = len(runs) - 2
    variance = float(relative @ relative) / free
    halves = stats.t.ppf((1 + CONFIDENCE) / 2, free) * np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    (fixed, per_token), (fixed_half, per_token_half) = line.tolist(), halves.tolist()
    return PromptTime(
        int(tokens.min()),
        int(tokens.max()),
        fixed,
        Interval(fixed - fixed_half, fixed + fixed_half),
        per_token,
        Interval(per_token - per_token_half, per_token + per_token_half),
    )


def drift(runs: Sequence[Run], rate: Rate) -> Drift | None:
    """The trend of the blocks' levels over time, by least squares; None with fewer than three blocks.

    Runs that follow each other share the machine's mood, so blocks are counted and not runs.
    """
    runs = in_full_blocks(runs)
    levels = block_levels(runs, rate)
    if len(levels) < 3:
        return None
    starts = [np.mean([run.started_s for run in runs if run.block == block]) for block in levels]
    if min(starts) == max(starts):
        return None
    found = stats.linregress(starts, list(levels.values()))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(levels) - 2) * found.stderr
    times = [run.started_s for run in runs]
    span = max(times) - min(times)
    low, change, high = (float(np.expm1(span * (found.slope + each))) for each in (-half, 0.0, half))
    return Drift(change, Interval(low, high))


def in_full_blocks(runs: Sequence[Run]) -> list[Run]:
    """The runs without those of blocks that lack too many lengths: Ctrl-C leaves such a block."""
    of_block: dict[int, set[int]] = defaultdict(set)
    for run in runs:
        of_block[run.block].add(run.prompt_tokens)
    least = LEAST_SHARE_OF_BLOCK * len({run.prompt_tokens for run in runs})
    return [run for run in runs if len(of_block[run.block]) >= least]


def block_levels(runs: Sequence[Run], rate: Rate) -> dict[int, float]:
    """How fast each block was, as the mean log rate over the lengths: additive effects of length and block.

    In a block that has every length that is the plain mean. What a block lacks is filled in by the effects, so that
    one without its slowest length is no faster for it.
    """
    if not runs:
        return {}
    blocks, of_block = np.unique([run.block for run in runs], return_inverse=True)
    kinds, of_length = np.unique([run.prompt_tokens for run in runs], return_inverse=True)
    design = np.zeros((len(runs), len(blocks) + len(kinds)))
    rows = np.arange(len(runs))
    design[rows, of_block] = design[rows, len(blocks) + of_length] = 1
    # The effects are known up to a constant that blocks gain and lengths lose; their sum does not need it.
    effects, *_ = np.linalg.lstsq(design, np.log(_rates(runs, rate)), rcond=None)
    levels = effects[: len(blocks)] + effects[len(blocks) :].mean()
    return dict(zip(blocks.tolist(), levels.tolist(), strict=True))


def outliers(runs: Sequence[Run]) -> list[Outlier]:
    """Runs far from the median of the others of their length, in relative terms; they stay in all figures.

    The median deviation is that of all lengths together: four values of one length know too little of it.
    """
    groups = [group for group in lengths(runs).values() if len(group) > 1]
    found = []
    for rate in RATES if groups else ():
        logs = [np.log(_rates(group, rate)) for group in groups]
        away = np.concatenate([[each[i] - np.median(np.delete(each, i)) for i in range(len(each))] for each in logs])
        scale = SD_BY_MEDIAN_DEVIATION * np.median(np.abs(away)) or SD_BY_MEAN_DEVIATION * np.mean(np.abs(away)) or 1
        scores = zip([run for group in groups for run in group], (away / scale).tolist(), strict=True)
        found += [Outlier(run, rate, score) for run, score in scores if abs(score) > OUTLYING]
    return found


def _rates(runs: Sequence[Run], rate: Rate) -> NDArray[np.float64]:
    return np.array([getattr(run, rate) for run in runs], dtype=float)


def _from_block_means(values: NDArray[np.float64], of_block: NDArray[np.intp]) -> NDArray[np.float64]:
    return values - (np.bincount(of_block, values) / np.bincount(of_block))[of_block]
