"""The search for the fastest configuration, on simulated nodes."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moehost import probes
from moehost import settings as inventory
from moehost.probes import Gain, Measured, Probe, TuneError, gain
from moehost.space import Space
from moehost.tune import BRANCHES, Result, follow
from tests.fixtures.simulated_node import SimulatedNode, measured_choices
from tests.unit.architectures import Shape
from tests.unit.full_size import as_set
from tests.unit.machines import card, with_cards

# Small enough that a plan takes no time, too large for one card of 24 GiB or two.
MIXTURE = Shape(
    "qwen3moe", 24, 4096, 32, 4, 128, 151936, experts=128, used=8, expert_ff=1536, extra=(("expert_count_", 0),)
)


@cache
def space(cards: int, **service: object) -> Space:
    """A machine of 8 cores with this many cards."""
    wish = {"name": "q", "model": {"name": "q", "source": "file:///q.gguf"}, "context": 32768, **service}
    read = inventory.read({"services": [wish]}).services[0]
    machine = with_cards(*[card(vram_mib=24576)] * cards, memory_mib=128000, cores=8)
    return Space(read, "/q.gguf", as_set(MIXTURE.layout()), machine, "ik", kv_types=("q8_0",), branches=BRANCHES)


def node(cards: int, **what: object) -> SimulatedNode:
    return SimulatedNode(space(cards), **{"best_threads": 6, **what})  # type: ignore[arg-type]


class TestAgainstAnExhaustiveSweep:
    @pytest.mark.parametrize("cards", [0, 1, 2])
    @pytest.mark.parametrize("what", [{}, {"best_threads": 8}, {"q8_gain": 0.06}], ids=str)
    def test_it_finds_the_best_within_the_noise_with_a_third_of_the_measurements(
        self, cards: int, what: dict[str, float]
    ) -> None:
        simulated = node(cards, **what)
        done, end = simulated.searched()
        every = simulated.every_choice()
        best_s = min(map(simulated.answer_s, every))
        assert end.best is not None
        # A KV type that gains less than 2 % is no reason to change anything.
        assert simulated.answer_s(end.best) <= best_s * 1.03
        assert measured_choices(done) <= len(every) / 3

    @pytest.mark.parametrize("seed", range(10))
    def test_noise_does_not_make_it_slower(self, seed: int) -> None:
        simulated = node(1, noise=0.08, seed=seed)
        _, end = simulated.searched()
        assert end.best is not None
        assert simulated.answer_s(end.best) <= 1.03 * simulated.answer_s(simulated.space.current)

    def test_the_speed_model_is_refitted_to_the_node(self) -> None:
        simulated = node(1)
        _, end = simulated.searched()
        plan = simulated.space.plan(simulated.space.current)
        measured_s = simulated.answer_s(replace(simulated.space.current, threads=6))
        before, after = (
            abs(simulated.space.predicted_s(plan, simulated.space.current, constants) / measured_s - 1)
            for constants in (None, end.constants)
        )
        assert after < 0.1 < before


class TestWhatEndsABranch:
    def test_it_keeps_the_configuration_where_nothing_is_faster(self) -> None:
        simulated = node(0, best_threads=space(0).current.threads)
        start = replace(space(0).current, ubatch=512)
        simulated.space = replace(space(0), service=space(0).service.model_copy(update={"ubatch": 512}))
        done, end = simulated.searched()
        assert end.best == start
        # One probe each of threads, of the ubatches beside the own, and of the KV type.
        assert [probe.branch for probe, _ in done] == ["threads", "ubatch", "kv-type"]

    def test_cards_that_bear_fewer_layers_than_planned_are_found_out(self) -> None:
        planned = sum(len(each) for device, each in _experts(space(1)).items() if device != "CPU")
        simulated = node(1, most_layers=planned - 3)
        done, end = simulated.searched()
        assert end.best is not None
        resident = [len(each) for device, each in simulated.space.plan(end.best).placement.experts.items()]
        assert planned - 5 <= resident[0] <= planned - 3
        assert any("out of memory" in str(found) for _, outcome in done for found in outcome.found)

    def test_cards_that_bear_nothing_end_it_with_the_reason(self) -> None:
        _, end = node(1, most_layers=-1).searched()
        assert end == Result(None, None, "out of memory: simulated")

    def test_a_node_without_cards_has_no_branches_of_cards(self) -> None:
        done, _ = node(0).searched()
        assert {probe.branch for probe, _ in done} <= {"threads", "ubatch", "kv-type"}

    def test_no_more_threads_than_cores(self) -> None:
        done, _ = node(2).searched()
        assert max(max(c.threads, c.threads_batch) for probe, _ in done for c in probe.choices) == 8

    def test_only_what_is_allowed_is_changed(self) -> None:
        simulated = node(1)
        simulated.space = replace(space(1), branches=("threads",), kv_types=())
        done, _ = simulated.searched()
        assert {(c.ubatch, c.kv_type) for probe, _ in done for c in probe.choices} == {(4096, "f16")}

    def test_an_engine_that_measures_nothing_ends_it(self) -> None:
        first = follow(space(0), [])
        assert isinstance(first, Probe)
        lost = probes.Outcome(("refused: --thing",) * len(first.choices), 1.0)
        assert follow(space(0), [(first, lost)]) == Result(None, None, "refused: --thing")


def _experts(of: Space) -> dict[str, tuple[int, ...]]:
    return of.plan(of.current).placement.experts


class TestItGoesOnWhereItWasCutOff:
    @pytest.mark.parametrize("cards", [0, 1, 2])
    def test_after_each_prefix_it_continues_in_the_same_way(self, cards: int) -> None:
        done, end = node(cards).searched()
        for count in range(len(done)):
            text = "".join(probes.line(*each) for each in done[:count]) + '{"probe": {"cut off'
            assert node(cards).searched(probes.parse(text)) == (done, end)

    def test_probes_of_another_search_are_refused(self) -> None:
        done, _ = node(0).searched()
        with pytest.raises(TuneError, match="probe 1 is another"):
            follow(space(1), done)

    def test_rubbish_is_refused(self) -> None:
        with pytest.raises(TuneError, match="holds no probes"):
            probes.parse("{}\n")


class TestGain:
    def test_what_slows_the_whole_machine_does_not_count(self) -> None:
        slow = [1.0, 2.0, 1.5, 3.0]
        found = gain(slow, [0.9 * each for each in slow])
        assert found.is_won()
        assert found == Gain(*[pytest.approx(0.1)] * 3)

    def test_one_pair_excludes_nothing(self) -> None:
        assert not gain([2.0], [1.0]).is_won()

    def test_it_is_students_interval(self) -> None:
        # By hand: differences of 0.1, 0.2 and 0.3, mean 0.2, deviation 0.1, t(0.975, 2) = 4.3027.
        found = gain([math.exp(each) for each in (0.1, 0.2, 0.3)], [1.0, 1.0, 1.0])
        half = 4.3027 * 0.1 / math.sqrt(3)
        assert found.low == pytest.approx(1 - math.exp(half - 0.2), abs=1e-4)
        assert found.high == pytest.approx(1 - math.exp(-half - 0.2), abs=1e-4)

    def test_it_covers_the_truth_as_often_as_it_says(self) -> None:
        noise, covered = random.Random(1), 0
        for _ in range(1000):
            pairs = [(noise.lognormvariate(0, 0.05), noise.lognormvariate(math.log(0.95), 0.05)) for _ in range(5)]
            found = gain(*zip(*pairs, strict=True))
            covered += found.low <= 0.05 <= found.high
        assert 930 <= covered <= 970

    @settings(max_examples=50)
    @given(st.lists(st.floats(0.1, 10), min_size=2, max_size=8), st.floats(0.5, 2))
    def test_units_do_not_matter(self, times: list[float], unit: float) -> None:
        others = [each * 1.1 for each in reversed(times)]
        plain, scaled = gain(times, others), gain([unit * e for e in times], [unit * e for e in others])
        assert scaled.middle == pytest.approx(plain.middle, abs=1e-9)
        assert plain.low <= plain.middle <= plain.high


def test_a_measurement_is_the_time_of_the_workload() -> None:
    assert Measured((2.0, 3.0), (0.1, 0.2)).answer_s(10) == (3.0, 5.0)
