"""Whether a machine is fast enough to work with every day, by its owner's measure; docs/statistics.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moehost.runs import Session
from moehost.stats import Length, by_length

SHORT_TOKENS, LONG_TOKENS = 1024, 16384
# How far beyond the measured lengths an estimate goes, relative, and how far apart the two around it may be.
REACH = 0.10
WIDEST_STEP = 4.0


@dataclass(frozen=True, slots=True)
class Needs:
    """What an owner wants at least of an answer, and at most of the wait for its first token; None for no matter.

    10 tok/s is somewhat faster than most people read.
    """

    decode_tok_s: float | None = 10.0
    first_token_1k_s: float | None = 10.0
    first_token_16k_s: float | None = 60.0


@dataclass(frozen=True, slots=True)
class Check:
    """One need: what is wanted, and what was measured; None where no measured length is within reach."""

    what: str
    unit: str
    wanted: float
    found: float | None
    is_met: bool | None


@dataclass(frozen=True, slots=True)
class DailyUse:
    """The needs one by one, and the verdict: too slow where one is not met, unknown where one was not measured."""

    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Literal["fast enough", "too slow", "not measured"]:
        """Of all needs together."""
        met = {check.is_met for check in self.checks}
        if False in met:
            return "too slow"
        return "not measured" if None in met or not met else "fast enough"


def daily_use(session: Session, needs: Needs) -> DailyUse:
    """Compares medians with the needs; of the decode rates the one at the slowest length counts."""
    lengths = by_length(session.measured)
    checks = []
    if needs.decode_tok_s is not None:
        slowest = min((each.decode_tok_s.median for each in lengths), default=None)
        is_met = None if slowest is None else slowest >= needs.decode_tok_s
        checks.append(Check("decode at the slowest context", "tok/s", needs.decode_tok_s, slowest, is_met))
    for tokens, wanted in ((SHORT_TOKENS, needs.first_token_1k_s), (LONG_TOKENS, needs.first_token_16k_s)):
        if wanted is not None:
            found = first_token_s(lengths, tokens)
            is_met = None if found is None else found <= wanted
            checks.append(Check(f"first token of {tokens:,} tokens", "s", wanted, found, is_met))
    return DailyUse(tuple(checks))


def first_token_s(lengths: Sequence[Length], tokens: int) -> float | None:
    """Seconds to the first token of a prompt, on the line between the medians of the two lengths around it.

    Up to REACH beyond the outermost length its median grows in proportion. None where that does not reach, or where
    the two lengths are more than WIDEST_STEP apart.
    """
    known = {each.prompt_tokens: each.first_token_s.median for each in lengths}
    below = max((each for each in known if each <= tokens), default=None)
    above = min((each for each in known if each >= tokens), default=None)
    if below is not None and above is not None:
        between = [below, above]
        return (
            float(np.interp(tokens, between, [known[each] for each in between]))
            if above <= WIDEST_STEP * below
            else None
        )
    nearest = below if below is not None else above
    if nearest is None or not 1 - REACH <= tokens / nearest <= 1 + REACH:
        return None
    return known[nearest] * tokens / nearest
