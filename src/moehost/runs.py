"""Runs of a benchmark as they are kept: JSON lines, first how they were made, then one for each request.

Standard library only: nodes write them, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FILE = "runs.jsonl"

# `discarded` was answered, but not as asked; `failed` was not answered. Both are repeated, and count.
Kind = Literal["warm_up", "measured", "discarded", "failed"]


class RunsError(ValueError):
    """A file that holds no runs; one line that says where."""


@dataclass(frozen=True, slots=True)
class Run:
    """One request.

    + block, prompt_tokens: its place in the order: each block asks for each length once, in a random order
    + answer_tokens: tokens asked for
    + started_s: when it was sent, seconds since 1970
    + prompt_n, prompt_s, predicted_n, decode_s: what the server says of it, or with `clock` `client` this program;
      the first token of an answer comes with the prompt, so `decode_s` is what the `predicted_n - 1` others took
    + first_token_s, total_s: from sending to the first and the last token, by this program's clock
    + gap_median_s, gap_max_s: between two pieces of the answer that arrive one after the other
    + draft_n, draft_accepted: tokens proposed by speculative decoding, and those kept
    + reason: why it does not count
    """

    kind: Kind
    block: int
    prompt_tokens: int
    answer_tokens: int
    started_s: float
    prompt_n: int = 0
    prompt_s: float = 0.0
    predicted_n: int = 0
    decode_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0
    gap_median_s: float = 0.0
    gap_max_s: float = 0.0
    draft_n: int = 0
    draft_accepted: int = 0
    clock: Literal["server", "client"] = "server"
    reason: str = ""

    @property
    def prompt_tok_s(self) -> float:
        """Rate of the prompt."""
        return self.prompt_n / self.prompt_s

    @property
    def decode_tok_s(self) -> float:
        """Rate of the answer, its first token left out."""
        return (self.predicted_n - 1) / self.decode_s


@dataclass(frozen=True)
class Session:
    """What a benchmark is made of, beside its runs.

    + order: what was asked for: `lengths`, `blocks`, `answer_tokens`, `warm_ups`, `seed`
    + fingerprint: hardware and software, free of names of hosts, of keys and of folders
    + plan: the plan that the service runs by, as `plan.json` has it; None where it is not known
    """

    order: dict[str, Any]
    fingerprint: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    runs: tuple[Run, ...] = ()

    @property
    def measured(self) -> tuple[Run, ...]:
        """The runs that count, in the order of time."""
        return tuple(run for run in self.runs if run.kind == "measured")


def lines(session: Session) -> Iterator[str]:
    """The text of a file, line by line, for `parse`."""
    yield json.dumps({"order": session.order, "fingerprint": session.fingerprint, "plan": session.plan}) + "\n"
    yield from map(line, session.runs)


def line(run: Run) -> str:
    """One run as a line."""
    return json.dumps(asdict(run)) + "\n"


def parse(text: Iterable[str], where: str) -> Session:
    """The inverse of `lines`; a last line that was cut off is left out. Raises RunsError for anything else."""
    rows = list(text)
    if rows and not rows[-1].endswith("\n"):
        rows.pop()
    try:
        first = json.loads(rows[0])
        runs = tuple(Run(**json.loads(each)) for each in rows[1:])
        return Session(first["order"], first["fingerprint"], first["plan"], runs)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise RunsError(f"{where}: holds no runs of a benchmark ({error}); see `moehost bench --help`") from None
