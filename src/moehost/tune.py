"""Finds a service's fastest configuration by measuring: which launch comes next, and what follows from all of them.

The search is a generator of probes that is sent their outcomes. It decides by nothing else, so the same seed gives
the same order, and a search that was cut off goes on by replaying what is kept. Branches come in the order of what
they usually bring: layers on the cards, threads, ubatch, offload batch, KV type, multi-token prediction. Two
placements with a different number of layers on the cards calibrate the speed model; what it then says is too slow is
left out.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from moehost import calibration, dry_run
from moehost.calibration import CalibrationError, Point
from moehost.plan import REFUSALS, Plan
from moehost.probes import LEAST_FREE_GAIN, LEAST_GAIN, Kind, Measured, Outcome, Probe, TuneError, gain
from moehost.request import UBATCHES
from moehost.space import Choice, Space
from moehost.speed import PUBLISHED, Constants

# A prediction excludes a choice only beyond this share, or beyond twice the calibrated model's own spread.
DOUBT = 0.10
FEWER_LAYERS = 6
THREADS_BELOW_CORES = 4
OFFLOAD_BATCHES = (8, 12, 16, 32)
DRAFT_TOKENS = (1, 2)
# Without a card nothing is carried, and small chunks may stay in the caches.
CPU_UBATCHES = (32, 64, 128, 256, 512, 1024, 2048)
BRANCHES = ("placement", "threads", "ubatch", "offload-batch", "kv-type", "mtp")


@dataclass(frozen=True)
class Result:
    """The end of a search: the choice, or why there is none; `constants` where the speed model was refitted."""

    best: Choice | None
    constants: Constants | None
    reason: str = ""


def follow(space: Space, outcomes: Sequence[tuple[Probe, Outcome]]) -> Probe | Result:
    """What comes after these probes, in this order; raises TuneError where they are not those of this search."""
    search = Search(space).run()
    upcoming = next(search)
    for number, (probe, outcome) in enumerate(outcomes, 1):
        if probe != upcoming:
            raise TuneError(f"probe {number} is another than this search makes; tune into a new folder")
        try:
            upcoming = search.send(outcome)
        except StopIteration as end:
            result: Result = end.value
            return result
    return upcoming


Steps = Generator[Probe, Outcome, Any]


class Search:
    """One search; `run` is the generator."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.best = space.current
        self.points: list[Point] = []
        self.constants: Constants | None = None
        self._reason = ""

    def run(self) -> Generator[Probe, Outcome, Result]:
        """Yields probes and takes their outcomes; returns the result."""
        space, cards = self.space, bool(self.space.node.gpus)
        if cards and space.dialect == "ik":
            yield from self._fit()
        first = self._placements() if cards and "placement" in space.branches else self._first_threads()
        if not (yield from self._start(first)):
            return Result(None, None, self._reason)
        if cards and "threads" in space.branches and len(self._threads()) > 1:
            yield from self._beat("threads", self._threads())
        if "ubatch" in space.branches:
            yield from (self._predicted_ubatches() if cards else self._neighbours())
        if "offload-batch" in space.branches:
            yield from self._beat("offload-batch", self._offload_batches())
        if "kv-type" in space.branches:
            others = [each for each in space.kv_types if each != self.best.kv_type]
            yield from self._beat("kv-type", [replace(self.best, kv_type=each) for each in others])
        if "mtp" in space.branches and space.can_draft:
            drafts = [replace(self.best, draft_tokens=each) for each in DRAFT_TOKENS]
            yield from self._beat("mtp", drafts, kind="server")
        return Result(self.best, self.constants)

    # Steps

    def _fit(self) -> Steps:
        """Correct the ledger's margins by what the engine itself allocates."""
        outcome = yield Probe("fit", "fit", (self.best,))
        # A plan that does not fit is found out by its launch, which is what counts.
        if (buffers := dry_run.parse(outcome.log)).is_complete:
            rows = self._plan(self.best).placement.rows
            corrected = dry_run.corrected_margins(rows, buffers)
            cards = zip(corrected, rows, strict=False)
            self.best = replace(self.best, corrections_mib=tuple(mib - row.margin_mib for mib, row in cards))

    def _start(self, choices: list[Choice]) -> Steps:
        """Measure where the search begins; False where nothing can be measured."""
        outcome = yield Probe("placement" if self.space.node.gpus else "threads", "bench", tuple(choices))
        self._learn(choices, outcome)
        if isinstance(outcome.found[0], Measured):
            self._take(choices, outcome)
            return True
        self._reason = outcome.found[0]
        if len(choices) == 1 or not self.space.node.gpus:
            return False
        return (yield from self._retreat(choices[1], outcome.found[1]))

    def _retreat(self, choice: Choice, found: Measured | str) -> Steps:
        """The plan was too much for the cards: find how many layers fewer they bear; False where it is none."""
        too_much_mib, fewer = self.best.margin_mib, FEWER_LAYERS
        while isinstance(found, str):
            too_much_mib, fewer = choice.margin_mib, 2 * fewer
            if not self._resident(choice):
                return False
            choice = replace(self.best, margin_mib=self.best.margin_mib + self.space.layers_mib(fewer))
            if not self._is_possible(choice):
                return False
            outcome = yield Probe("placement", "bench", (choice,))
            found = outcome.found[0]
            self._learn([choice], outcome)
        self.best, enough_mib = choice, choice.margin_mib
        while enough_mib - too_much_mib > self.space.layers_mib(1):
            between = replace(choice, margin_mib=(enough_mib + too_much_mib) // 2)
            outcome = yield Probe("placement", "bench", (self.best, between))
            self._learn([self.best, between], outcome)
            self._take([self.best, between], outcome)
            if isinstance(outcome.found[1], str):
                too_much_mib = between.margin_mib
            else:
                enough_mib = between.margin_mib
        return True

    def _beat(self, branch: str, challengers: Sequence[Choice], kind: Kind = "bench") -> Steps:
        """Measure choices against the best one in turns; the fastest that wins takes its place. True if one did."""
        plans = [each for each in challengers if self._is_possible(each)]
        if not plans:
            return False
        choices = (self.best, *plans)
        outcome = yield Probe(branch, kind, choices)
        if kind == "bench":
            self._learn(choices, outcome)
        return self._take(choices, outcome)

    def _take(self, choices: Sequence[Choice], outcome: Outcome) -> bool:
        before, answer_tokens = outcome.found[0], self.space.service.workload.answer_tokens
        if isinstance(before, str):
            return False
        won: list[tuple[float, Choice]] = []
        for choice, found in zip(choices[1:], outcome.found[1:], strict=True):
            if isinstance(found, Measured):
                is_free = (choice.kv_type, choice.draft_tokens) == (self.best.kv_type, self.best.draft_tokens)
                difference = gain(before.answer_s(answer_tokens), found.answer_s(answer_tokens))
                if difference.is_won(LEAST_FREE_GAIN if is_free else LEAST_GAIN):
                    won.append((difference.middle, choice))
        if not won:
            return False
        first = self.best
        self.best = max(won, key=lambda each: each[0])[1]
        # Decode and prompts have threads of their own: where both win, both are taken.
        decode, prompts = (
            [each for each in won if is_alone(each[1], first)] for is_alone in (_is_decode, _is_prompts)
        )
        if decode and prompts:
            best_decode, best_prompts = (max(each, key=lambda pair: pair[0])[1] for each in (decode, prompts))
            self.best = replace(best_decode, threads_batch=best_prompts.threads_batch)
        return True

    def _neighbours(self) -> Steps:
        """Climb through the ubatches from where the search is, as long as a neighbour wins."""
        ladder = self.space.ubatches(CPU_UBATCHES, self.best.ubatch)
        tried = {self.best.ubatch}
        while True:
            at = ladder.index(self.best.ubatch)
            near = [each for each in ladder[max(at - 1, 0) : at + 2] if each not in tried]
            tried |= set(near)
            if not (yield from self._beat("ubatch", [replace(self.best, ubatch=each) for each in near])):
                return

    def _predicted_ubatches(self) -> Steps:
        """Measure the ubatch that is predicted fastest, with its own layers on the cards, until none can win."""
        tried = {self.best.ubatch}
        while True:
            limit_s = self._predicted_s(self.best) * (1 - LEAST_GAIN)
            rest = [replace(self.best, ubatch=each) for each in self.space.ubatches(UBATCHES, self.best.ubatch)]
            times = {
                each: self._predicted_s(each) for each in rest if each.ubatch not in tried and self._is_possible(each)
            }
            reach = {each: time for each, time in times.items() if time * (1 - self._doubt) < limit_s}
            if not reach:
                return
            challenger = min(reach, key=lambda each: reach[each])
            tried.add(challenger.ubatch)
            yield from self._beat("ubatch", [challenger])

    # Choices

    def _placements(self) -> list[Choice]:
        fewer = self.best.margin_mib + self.space.layers_mib(FEWER_LAYERS)
        other = replace(self.best, margin_mib=fewer)
        changes = self._is_possible(other) and self._resident(other) != self._resident(self.best)
        return [self.best, other] if changes else [self.best]

    def _first_threads(self) -> list[Choice]:
        wanted = "threads" in self.space.branches and not self.space.node.gpus
        return [self.best, *(self._threads() if wanted else [])]

    def _threads(self) -> list[Choice]:
        """Other threads for decode, and for prompts: never more than there are physical cores."""
        cores = self.space.node.physical_cores
        counts = range(max(cores - THREADS_BELOW_CORES, 1), cores + 1)
        decode = [replace(self.best, threads=count) for count in counts if count != self.best.threads]
        prompts = [replace(self.best, threads_batch=count) for count in counts if count != self.best.threads_batch]
        return decode + prompts

    def _offload_batches(self) -> list[Choice]:
        """Only where the workload has chunks that another value sends elsewhere; one value for each way."""
        space = self.space
        if space.dialect != "ik" or not space.node.gpus or not self._plan(self.best).placement.experts["CPU"]:
            return []
        ways = {space.carried(self._plan(self.best), self.best): self.best}
        for batch in OFFLOAD_BATCHES:
            choice = replace(self.best, offload_batch=batch)
            ways.setdefault(space.carried(self._plan(choice), choice), choice)
        return list(ways.values())[1:]

    # What is known

    def _plan(self, choice: Choice) -> Plan:
        return self.space.plan(choice)

    def _is_possible(self, choice: Choice) -> bool:
        try:
            return bool(self._plan(choice))
        except REFUSALS:
            return False

    def _resident(self, choice: Choice) -> int:
        return sum(len(layers) for device, layers in self._plan(choice).placement.experts.items() if device != "CPU")

    def _predicted_s(self, choice: Choice) -> float:
        return self.space.predicted_s(self._plan(choice), choice, self.constants)

    @property
    def _doubt(self) -> float:
        return max(DOUBT, 2 * self.constants.spread) if self.constants else 1.0

    def _learn(self, choices: Sequence[Choice], outcome: Outcome) -> None:
        """Refit the speed model to what was measured on the cards."""
        space = self.space
        if not space.node.gpus:
            return
        tokens = space.service.workload.prompt_tokens
        for choice, found in zip(choices, outcome.found, strict=True):
            if isinstance(found, Measured):
                placement = self._plan(choice).placement
                prompts = space.prompts(self._plan(choice), choice)
                rate, prompt_s = 1 / _middle(found.token_s), _middle(found.prompt_s)
                self.points.append(Point(placement.load, rate, prompts, ((tokens, prompt_s),)))
        # With one point, or noise that contradicts the model, it stays as it was.
        with suppress(CalibrationError):
            self.constants = calibration.calibrate(space.node, self.points, space.constants or PUBLISHED)


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _is_decode(choice: Choice, before: Choice) -> bool:
    return choice == replace(before, threads=choice.threads) != before


def _is_prompts(choice: Choice, before: Choice) -> bool:
    return choice == replace(before, threads_batch=choice.threads_batch) != before
