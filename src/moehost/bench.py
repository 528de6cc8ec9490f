"""Measures a server by requests, one after the other; runs here, or on a node: ``python3 -m moehost.bench JOB.json``.

Standard library only; the modules in `MODULES` and prose.txt go with it. Standard output is JSON lines: first what is
measured (`Opened`), then each `Run` as it ends, or `{"refusal": ...}` as the last. Requests are made one at a time,
each with a prompt that the server has not seen, and nothing of it cached.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moehost import prose
from moehost.client import Client, ClientError, first_key
from moehost.runs import Run, line

MODULES = ("__init__", "client", "prose", "runs", "bench")
LENGTHS = (512, 1024, 4096, 8192, 16384)
SIDES = (15 / 16, 17 / 16)  # of the threshold from which prompts are computed on the card: one length on either side
CLOSE = 0.9  # lengths nearer to each other than that say the same
USUAL_THRESHOLD = 1639  # of ik_llama.cpp with 10 of 512 experts
LEAST_TOKENS = 16
TRIES = 3
CHARACTERS = 5  # of a token, to begin with
SAMPLE_TOKENS = 500


@dataclass(frozen=True)
class Job:
    """What to measure.

    + url: where the server answers
    + runs: how many; each block asks for each length once
    + lengths: tokens of the prompts; chosen by what the server takes if empty
    + depths: further lengths, for contexts beyond those
    + answer_tokens: what each run has answered, whatever the model would say
    + warm_ups: runs that come first and do not count: the longest prompt, then the shortest, and so on
    + threshold: tokens from which prompts are computed on the card, where that is known
    + done: runs from before that need not be made again
    + timeout_s: of a request
    """

    url: str
    runs: int = 28
    lengths: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    answer_tokens: int = 512
    warm_ups: int = 2
    seed: int = 0
    threshold: int | None = None
    done: list[list[int]] = field(default_factory=list)
    timeout_s: float = 1800.0


class BenchError(RuntimeError):
    """Why nothing can be measured; one line that says how to mend it."""


def lengths(job: Job, room: int | None) -> list[int]:
    """The lengths that a job asks for, of a server that has room for so many tokens of a prompt and its answer.

    None is room without an end. Raises BenchError where the job's own do not fit.
    """
    most = math.inf if room is None else room - job.answer_tokens - 1
    if most < LEAST_TOKENS:
        raise BenchError(f"the server has room for {room} tokens; ask for shorter answers than {job.answer_tokens}")
    if long := [each for each in (*job.lengths, *job.depths) if each > most]:
        raise BenchError(f"a prompt of {max(long)} tokens and {job.answer_tokens} of answer are more than the {room} "
                         "that the server has room for; ask for less, or give its service more context")  # fmt: skip
    return sorted({*(job.lengths or _usual(most, job.threshold)), *job.depths})


def _usual(most: float, threshold: int | None) -> list[int]:
    """Seven lengths: on both sides of the threshold, and up to 16k or as far as there is room for."""
    if threshold is not None and not 4 * LEAST_TOKENS <= threshold <= LENGTHS[-1] / 2:
        threshold = None
    sides = [round((threshold or USUAL_THRESHOLD) * share) for share in SIDES]
    if most >= LENGTHS[-1]:
        return sorted({*LENGTHS, *sides})
    if threshold is None or sides[-1] > most * CLOSE:
        sides = []
    doublings = [LEAST_TOKENS << n for n in range(11) if LEAST_TOKENS << n <= most * CLOSE]
    found = {*doublings[len(sides) - 6 :], *sides, int(most)}
    steps = (most / LEAST_TOKENS) ** (1 / 6)
    return sorted(found if len(found) == 7 else {round(LEAST_TOKENS * steps**n) for n in range(7)})


def order(lengths: Sequence[int], runs: int, seed: int) -> list[tuple[int, int]]:
    """Pairs of block and length in the order of the runs: each block has each length once, shuffled by the seed.

    So what changes slowly, such as heat, falls on all lengths alike. A last block may be cut off.
    """
    places: list[tuple[int, int]] = []
    for block in range(-(-runs // len(lengths))):
        shuffled = list(lengths)
        random.Random(f"{seed}:{block}").shuffle(shuffled)  # noqa: S311 - an order, no secret
        places += [(block, each) for each in shuffled]
    return places[:runs]


@dataclass(frozen=True)
class Opened:
    """What is measured: the order of the runs, as `runs.Session` keeps it, and what the server says of itself."""

    order: dict[str, Any]
    server: dict[str, Any]


class Bench:
    """One benchmark of one server."""

    def __init__(self, job: Job, client: Client, text: str) -> None:
        self.job, self.client, self._prose = job, client, text
        self.lengths = lengths(job, client.context)
        self._characters, self._is_counted = float(CHARACTERS), False
        # A prompt of the last minute may still be in the server's cache when the same benchmark is made again.
        self._label = f"{time.time_ns()}"

    @property
    def opened(self) -> Opened:
        """What this benchmark is."""
        asked = {key: getattr(self.job, key) for key in ("runs", "answer_tokens", "warm_ups", "seed")}
        return Opened({"lengths": self.lengths, **asked}, self.client.about)

    def run(self) -> Iterator[Run]:
        """Each run as it ends; one that does not count is made again, up to three times in all.

        Raises BenchError when a server gives no answer three times in a row.
        """
        ends = (self.lengths[-1], self.lengths[0])
        failed_in_a_row = 0
        warm_ups = [(-1 - n, ends[n % 2]) for n in range(self.job.warm_ups)]
        done = {(block, length) for block, length in self.job.done}
        places = [place for place in order(self.lengths, self.job.runs, self.job.seed) if place not in done]
        for block, length in [*warm_ups, *places] if places else []:
            for attempt in range(TRIES):
                run = self._one(block, length, attempt)
                yield run
                failed_in_a_row = failed_in_a_row + 1 if run.kind == "failed" else 0
                if failed_in_a_row == TRIES:
                    raise BenchError(f"the server gives no answer: {run.reason}")
                if run.kind in ("measured", "warm_up"):
                    break

    def _one(self, block: int, length: int, attempt: int) -> Run:
        tokens, started_s = self.job.answer_tokens, time.time()
        try:
            prompt = self._prompt(length, f"{self._label}, block {block}, {length} tokens, attempt {attempt}")
            started_s = time.time()
            answer = self.client.complete(prompt, tokens, self.job.timeout_s)
        except ClientError as error:
            return Run("failed", block, length, tokens, started_s, reason=str(error))
        gaps = [after - before for before, after in zip(answer.arrived_s, answer.arrived_s[1:], strict=False)]
        run = Run(
            kind="measured" if block >= 0 else "warm_up",
            block=block,
            prompt_tokens=length,
            answer_tokens=tokens,
            started_s=round(started_s, 3),
            first_token_s=answer.arrived_s[0],
            total_s=answer.arrived_s[-1],
            gap_median_s=statistics.median(gaps) if gaps else 0.0,
            gap_max_s=max(gaps, default=0.0),
            **asdict(answer.timings),
        )
        if reason := self._doubt(run, answer.cached_n):
            return Run(**{**asdict(run), "kind": "discarded", "reason": reason})
        return run

    def _doubt(self, run: Run, cached_n: int) -> str:
        """Why a run does not count; empty where it does."""
        if cached_n:
            return f"{cached_n} tokens of the prompt came from a cache"
        # Where this program can't make tokens itself, a length is met as well as characters allow.
        slack = 0 if self.client.has_tokens else max(8, run.prompt_tokens // 10)
        if abs(run.prompt_n - run.prompt_tokens) > slack:
            return f"the server computed {run.prompt_n} tokens of {run.prompt_tokens}"
        if run.predicted_n != run.answer_tokens:
            return f"the answer ended after {run.predicted_n} tokens of {run.answer_tokens}"
        if min(run.prompt_s, run.decode_s) <= 0:
            return "the server gives no times"
        return ""

    def _prompt(self, length: int, label: str) -> list[int] | str:
        """Natural text of so many tokens: as numbers, or where the server has none to give, as text."""
        if not self.client.has_tokens:
            return self._text(length, label)
        while True:
            tokens = self.client.tokenize(self._passage(length, label))
            if len(tokens) >= length:
                return tokens[:length]
            self._characters *= 1.1 * length / max(1, len(tokens))

    def _text(self, length: int, label: str) -> str:
        """As many characters as so many tokens have, by what the server has counted of another text."""
        if not self._is_counted:
            sample = self._passage(SAMPLE_TOKENS, f"{label}, a sample")
            self._characters = self.client.characters(sample) or self._characters
            self._is_counted = True
        return self._passage(length, label)[: round(length * self._characters)]

    def _passage(self, length: int, label: str) -> str:
        return prose.passage(self._prose, round(length * self._characters), self.job.seed, label)


def main(path: str) -> int:
    """Run the job at `path`; the key is in the unit's credential `api-keys`."""
    folder = Path(path).parent
    job = Job(**json.loads(Path(path).read_text()))
    key = ""
    if credentials := os.environ.get("CREDENTIALS_DIRECTORY"):
        key = first_key(Path(credentials, "api-keys").read_text()) or ""
    try:
        bench = Bench(job, Client(job.url, key), (folder / "prose.txt").read_text(encoding="utf-8"))
        print(json.dumps(asdict(bench.opened)), flush=True)
        for run in bench.run():
            print(line(run), end="", flush=True)
    except (BenchError, ClientError) as error:
        print(json.dumps({"refusal": str(error)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
