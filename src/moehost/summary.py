"""A benchmark in figures: what its report shows, and what `summary.json` keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from moehost import stats
from moehost.daily_use import DailyUse, Needs, daily_use
from moehost.redact import redact
from moehost.runs import Run, Session
from moehost.stats import RATES, Drift, Length, Outlier, PromptTime, Rate, Slope


@dataclass(frozen=True)
class Summary:
    """What the measured runs say, and whose they are; nothing in it names a host, a user, a folder or a key.

    + session: the benchmark, redacted
    + threshold: tokens of a prompt from which the engine carries experts to a card, where the plan says so
    """

    session: Session
    needs: Needs
    threshold: int | None
    lengths: list[Length]
    slope: Slope | None
    prompt_times: list[PromptTime]
    drift: dict[Rate, Drift | None]
    outliers: list[Outlier]
    daily_use: DailyUse

    @property
    def counts(self) -> dict[str, int]:
        """Runs by kind; those that do not count are told, too."""
        found = Counter(run.kind for run in self.session.runs)
        return {kind: found[kind] for kind in ("measured", "warm_up", "discarded", "failed")}

    @property
    def prediction(self) -> dict[int, float]:
        """The planner's prompt tok/s by tokens of the prompt; empty where there is no plan."""
        rates = (self.session.plan or {}).get("prediction", {}).get("prompt_tok_s", {})
        return {int(tokens): float(rate) for tokens, rate in rates.items()}

    @property
    def argv(self) -> list[str]:
        """What the engine was started with, as the fingerprint or else the plan says; empty where neither does."""
        found: list[str] = self.session.fingerprint.get("argv") or (self.session.plan or {}).get("argv", [])
        return found

    @property
    def model(self) -> str:
        """Name of the model; empty where nobody says."""
        for source in (self.session.fingerprint, self.session.plan or {}):
            if name := source.get("model", {}).get("name"):
                return str(name)
        return ""

    def marks(self, run: Run) -> list[Rate]:
        """The rates by which a run is an outlier."""
        return [outlier.rate for outlier in self.outliers if outlier.run is run]

    def to_json(self) -> dict[str, Any]:
        """The contract of `summary.json`; intervals are [low, high], at 95 %."""
        return {
            "order": self.session.order,
            "counts": self.counts,
            "lengths": [asdict(each) for each in self.lengths],
            "decode_slope": asdict(self.slope) if self.slope else None,
            "prompt_time": [asdict(each) for each in self.prompt_times],
            "drift": {rate: asdict(found) if found else None for rate, found in self.drift.items()},
            "outliers": [
                {"run": self.session.runs.index(each.run), "rate": each.rate, "score": each.score}
                for each in self.outliers
            ],
            "daily_use": {**asdict(self.daily_use), "verdict": self.daily_use.verdict, "needs": asdict(self.needs)},
            "model": self.model,
            "fingerprint": self.session.fingerprint,
            "argv": self.argv,
            "prediction": (self.session.plan or {}).get("prediction"),
        }


def summarise(session: Session, needs: Needs | None = None, names: Iterable[str] = ()) -> Summary:
    """Everything that is to be said of a benchmark; `names` are further words that must not appear."""
    names = tuple(names)
    session = Session(
        redact(session.order, names),
        redact(session.fingerprint, names),
        redact(session.plan, names),
        tuple(replace(run, reason=redact(run.reason, names)) for run in session.runs),
    )
    needs = needs or Needs()
    runs = session.measured
    threshold = (session.plan or {}).get("prediction", {}).get("offload_tokens")
    return Summary(
        session=session,
        needs=needs,
        threshold=threshold,
        lengths=stats.by_length(runs),
        slope=stats.decode_slope(runs),
        prompt_times=stats.prompt_times(runs, threshold),
        drift={rate: stats.drift(runs, rate) for rate in RATES},
        outliers=stats.outliers(runs),
        daily_use=daily_use(session, needs),
    )
