"""Probes of a search for the fastest configuration: what is launched, what is found, and how two findings compare."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from moehost.space import Choice

FILE = "probes.jsonl"
# What a change must bring, in time of the workload's request, and how sure that must be. A change of what is computed
# (KV type, drafts) must bring more than one of how: small gains of threads and ubatch add up, and cost nothing.
LEAST_GAIN = 0.02
LEAST_FREE_GAIN = 0.005
CONFIDENCE = 0.95

Kind = Literal["fit", "bench", "server"]


class TuneError(ValueError):
    """Kept probes that are not those of this search; one line."""


@dataclass(frozen=True)
class Probe:
    """Launches that belong together: the choices are measured in turns, the one to beat first.

    `fit` lets the engine allocate buffers without weights, `bench` is llama-bench, `server` asks a real server.
    """

    branch: str
    kind: Kind
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Measured:
    """What one choice took, round by round: seconds of the prompt, and of a token of the answer."""

    prompt_s: tuple[float, ...]
    token_s: tuple[float, ...]

    def answer_s(self, answer_tokens: int) -> tuple[float, ...]:
        """Time of the workload's request, by rounds."""
        return tuple(p + answer_tokens * t for p, t in zip(self.prompt_s, self.token_s, strict=True))


@dataclass(frozen=True)
class Outcome:
    """What a probe has found, for each of its choices: a measurement, or why there is none.

    + log: of a `fit`, what the engine says
    """

    found: tuple[Measured | str, ...]
    elapsed_s: float
    log: str = ""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Outcome:
        """Reads what `dataclasses.asdict` made."""

        def one(each: Any) -> Measured | str:
            return each if isinstance(each, str) else Measured(tuple(each["prompt_s"]), tuple(each["token_s"]))

        return cls(tuple(map(one, data["found"])), data["elapsed_s"], data["log"])


@dataclass(frozen=True)
class Gain:
    """How much less time a choice takes than another, relative; the interval of CONFIDENCE around it."""

    low: float
    middle: float
    high: float

    def is_won(self, least: float = LEAST_GAIN) -> bool:
        """Whether it is worth a change: at least so large, and not by chance."""
        return self.middle >= least and self.low > 0


def gain(before: Sequence[float], after: Sequence[float], comparisons: int = 1) -> Gain:
    """Compares times that were measured in turns: Student's interval of the paired differences of their logarithms.

    Pairs share the state of the machine, so what slows both does not count. One pair alone excludes nothing.

    + comparisons: how many are made at once; the interval then holds for all of them together (Bonferroni)
    """
    from scipy import stats  # it takes half a second, and commands that measure nothing don't need it

    differences = [math.log(a / b) for a, b in zip(before, after, strict=False)]
    count = len(differences)
    if not count:
        raise ValueError("nothing was measured in turns")
    middle = sum(differences) / count
    if count == 1:
        return Gain(-math.inf, 1 - math.exp(-middle), 1.0)
    deviation = math.sqrt(sum((each - middle) ** 2 for each in differences) / (count - 1))
    half = float(stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / comparisons, count - 1)) * deviation / math.sqrt(count)
    return Gain(*(1 - math.exp(-each) for each in (middle - half, middle, middle + half)))


def line(probe: Probe, outcome: Outcome) -> str:
    """A probe with its outcome as a line of JSON."""
    return json.dumps({"probe": asdict(probe), "outcome": asdict(outcome)}) + "\n"


def parse(text: str) -> list[tuple[Probe, Outcome]]:
    """The inverse of `line`, for many; a last line that was cut off is left out. Raises TuneError."""
    try:
        return [_read(json.loads(each)) for each in text.splitlines(keepends=True) if each.endswith("\n")]
    except (ValueError, KeyError, TypeError) as error:
        raise TuneError(f"{FILE}: holds no probes ({error!r:.80}); tune into a new folder") from None


def _read(data: Any) -> tuple[Probe, Outcome]:
    probe = data["probe"]
    choices = (Choice(**{**each, "corrections_mib": tuple(each["corrections_mib"])}) for each in probe["choices"])
    return Probe(probe["branch"], probe["kind"], tuple(choices)), Outcome.from_json(data["outcome"])
