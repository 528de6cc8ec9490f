"""Statistics of a benchmark against machines whose speed is known, and against known answers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from moehost.stats import (
    OUTLYING,
    block_levels,
    by_length,
    decode_slope,
    drift,
    in_full_blocks,
    outliers,
    prompt_times,
    spread,
)
from tests.fixtures import published_runs
from tests.fixtures.benchmark import LENGTHS, THRESHOLD, decode_tok_s, simulated

PUBLISHED = list(published_runs.RUNS.values())


class TestSpread:
    def test_quartiles(self) -> None:
        found = spread([4.0, 1.0, 3.0, 2.0, 5.0])
        assert (found.count, found.q1, found.median, found.q3) == (5, 2.0, 3.0, 4.0)

    @pytest.mark.parametrize("values", [(1.0, 2.0, 4.0, 8.0), (3.0, 5.0, 6.0, 9.0, 9.5)])
    def test_the_bootstrap_against_all_samples_that_there_are(self, values: tuple[float, ...]) -> None:
        medians = [np.median(sample) for sample in itertools.product(values, repeat=len(values))]
        found = spread(values).interval
        assert found == pytest.approx(np.quantile(medians, (0.025, 0.975)), rel=0.03)

    def test_four_values_reach_from_the_smallest_to_the_largest(self) -> None:
        assert spread([20.0, 22.0, 21.0, 24.0]).interval == (20.0, 24.0)

    def test_many_values_against_the_interval_of_the_binomial(self) -> None:
        values = np.sort(np.random.default_rng(3).normal(100, 5, 200))
        low, high = scipy_stats.binom.ppf((0.025, 0.975), 200, 0.5).astype(int)
        assert spread(values.tolist()).interval == pytest.approx((values[low], values[high]), abs=0.3)

    def test_one_value_has_no_interval(self) -> None:
        found = spread([7.0])
        assert (found.median, found.q1, found.q3, found.interval) == (7.0, 7.0, 7.0, None)

    def test_equal_values(self) -> None:
        assert spread([2.0] * 4).interval == (2.0, 2.0)

    def test_the_same_values_give_the_same_interval(self) -> None:
        values = np.random.default_rng(1).normal(100, 5, 28).tolist()
        assert spread(values) == spread(values)


class TestByLength:
    def test_the_shortest_first(self) -> None:
        found = by_length(simulated().runs)
        assert [each.prompt_tokens for each in found] == list(LENGTHS)
        assert {each.prompt_tok_s.count for each in found} == {4}

    def test_rates_and_times_are_of_their_length(self) -> None:
        (first, *_) = by_length(PUBLISHED)
        assert (first.prompt_tokens, first.prompt_tok_s.count) == (550, 1)
        assert first.prompt_tok_s.median == pytest.approx(117.78)
        assert first.decode_tok_s.median == pytest.approx(22.91)
        assert first.first_token_s.median == pytest.approx(550 / 117.78)


class TestDecodeSlope:
    def test_a_machine_without_noise(self) -> None:
        found = decode_slope(simulated(noise=0, block_noise=0).runs)
        assert found is not None
        assert found.per_1k == pytest.approx(-0.1)
        assert found.per_1k_interval == pytest.approx((-0.1, -0.1))
        assert found.change == pytest.approx(decode_tok_s(16000) / decode_tok_s(550) - 1)
        assert (found.shortest, found.longest) == (550, 16000)
        rate, band = found.at(9000)
        assert rate == pytest.approx(decode_tok_s(9000))
        assert band == pytest.approx((rate, rate))

    def test_against_scipy_where_there_is_one_block(self) -> None:
        runs = simulated(5, blocks=1).runs
        line = scipy_stats.linregress([run.prompt_n for run in runs], [run.decode_tok_s for run in runs])
        half = scipy_stats.t.ppf(0.975, len(runs) - 2) * line.stderr
        found = decode_slope(runs)
        assert found is not None
        assert found.per_1k == pytest.approx(1000 * line.slope)
        assert found.per_1k_interval == pytest.approx((1000 * (line.slope - half), 1000 * (line.slope + half)))
        assert found.at(0)[0] == pytest.approx(line.intercept)
        intercept_half = scipy_stats.t.ppf(0.975, len(runs) - 2) * line.intercept_stderr
        assert found.at(0)[1].high == pytest.approx(line.intercept + intercept_half)

    def test_the_interval_holds_the_truth_nineteen_times_in_twenty(self) -> None:
        found = [decode_slope(simulated(seed, block_noise=0.1).runs) for seed in range(400)]
        held = sum(each.per_1k_interval.low <= -0.1 <= each.per_1k_interval.high for each in found if each)
        assert 0.92 < held / 400 < 0.98

    def test_moods_of_blocks_are_no_slope(self) -> None:
        quiet, moody = (decode_slope(simulated(2, block_noise=mood).runs) for mood in (0.0, 0.2))
        assert quiet and moody
        widths = [each.per_1k_interval.high - each.per_1k_interval.low for each in (quiet, moody)]
        assert widths[1] < 1.5 * widths[0]

    def test_the_published_runs_are_stable(self) -> None:
        found = decode_slope(PUBLISHED)
        assert found is not None
        assert found.per_1k_interval.low < 0 < found.per_1k_interval.high

    def test_too_few_runs(self) -> None:
        assert decode_slope(simulated(lengths=(512,)).runs) is None
        assert decode_slope(simulated(blocks=1, lengths=(512, 1024)).runs) is None
        assert decode_slope(()) is None


class TestPromptTime:
    def test_a_line_on_either_side_of_the_threshold(self) -> None:
        below, above = prompt_times(simulated(noise=0, block_noise=0).runs, THRESHOLD)
        assert (below.shortest, below.longest, above.shortest, above.longest) == (550, 1600, 1700, 16000)
        assert (below.fixed_s, below.per_token_s) == pytest.approx((2.3, 4.2e-3))
        assert (above.fixed_s, above.per_token_s) == pytest.approx((0.4, 2.6e-3))
        assert above.at(10_000) == pytest.approx(26.4)

    def test_one_line_without_a_threshold(self) -> None:
        (found,) = prompt_times(simulated().runs, None)
        assert (found.shortest, found.longest) == (550, 16000)

    def test_the_interval_holds_the_truth_nineteen_times_in_twenty(self) -> None:
        held = 0
        for seed in range(300):
            _, above = prompt_times(simulated(seed, noise=0.04, block_noise=0).runs, THRESHOLD)
            held += above.per_token_interval.low <= 2.6e-3 <= above.per_token_interval.high
        assert 0.91 < held / 300 < 0.985

    def test_long_prompts_do_not_drown_the_short_ones(self) -> None:
        """With errors that grow with the time, plain least squares knows the fixed part far less well."""
        runs = [simulated(seed, noise=0.03, block_noise=0).runs for seed in range(100)]
        of_fixed = [prompt_times(each, THRESHOLD)[1].fixed_s for each in runs]
        plain = [
            np.polyfit(*zip(*[(r.prompt_n, r.prompt_s) for r in each if r.prompt_n >= THRESHOLD], strict=True), 1)[1]
            for each in runs
        ]
        assert np.mean(of_fixed) == pytest.approx(0.4, abs=0.05)
        assert np.std(of_fixed) < 0.7 * np.std(plain)

    def test_the_published_runs_below_the_threshold(self) -> None:
        """What was found by hand: 2.34 s and 4.24 ms a token."""
        (below,) = prompt_times(PUBLISHED, THRESHOLD)
        assert (below.fixed_s, below.per_token_s) == pytest.approx((2.34, 4.24e-3), rel=0.02)

    def test_too_few_runs(self) -> None:
        assert prompt_times(simulated(lengths=(512,)).runs, None) == []
        assert prompt_times((), 512) == []


class TestDrift:
    def test_a_machine_that_gets_slower(self) -> None:
        found = drift(simulated(1, noise=0.002, block_noise=0, drift=-0.1).runs, "decode_tok_s")
        assert found is not None
        assert found.change == pytest.approx(-0.1, abs=0.01)
        assert found.interval.low < -0.1 < found.interval.high < 0

    def test_a_steady_machine_is_called_so(self) -> None:
        found = [drift(simulated(seed, block_noise=0.05).runs, "prompt_tok_s") for seed in range(300)]
        held = sum(each.interval.low <= 0 <= each.interval.high for each in found if each)
        assert 0.91 < held / 300 < 0.985

    def test_two_blocks_show_none(self) -> None:
        assert drift(simulated(blocks=2).runs, "decode_tok_s") is None
        assert drift([replace(run, started_s=0.0) for run in simulated().runs], "decode_tok_s") is None


class TestBlocks:
    def test_the_level_of_a_whole_block_is_its_mean(self) -> None:
        runs = simulated().runs
        for block, level in block_levels(runs, "prompt_tok_s").items():
            mean = np.mean([np.log(run.prompt_tok_s) for run in runs if run.block == block])
            assert level == pytest.approx(mean)

    @pytest.mark.parametrize("lost", [0, 3, 6])
    def test_a_block_without_a_length_is_no_faster_for_it(self, lost: int) -> None:
        runs = simulated(noise=0, block_noise=0).runs
        lacking = [run for run in runs if not (run.block == 3 and run.prompt_tokens == LENGTHS[lost])]
        levels = list(block_levels(lacking, "prompt_tok_s").values())
        assert levels == pytest.approx(list(block_levels(runs, "prompt_tok_s").values()))

    def test_a_block_that_had_only_begun_is_left_out(self) -> None:
        runs = simulated().runs
        assert in_full_blocks(runs) == list(runs)
        assert in_full_blocks(runs[:25]) == list(runs[:25])
        assert in_full_blocks(runs[:24]) == list(runs[:21])

    @settings(max_examples=25, deadline=None)
    @given(scale=st.floats(0.1, 10), shuffle=st.randoms(use_true_random=False))
    def test_scale_and_order_do_not_matter(self, scale: float, shuffle: object) -> None:
        runs = list(simulated(3).runs)[:27]
        scaled = [replace(run, prompt_s=run.prompt_s / scale) for run in runs]
        shuffle.shuffle(scaled)  # type: ignore[attr-defined]
        was, now = block_levels(runs, "prompt_tok_s"), block_levels(scaled, "prompt_tok_s")
        assert now == pytest.approx({block: level + np.log(scale) for block, level in was.items()})


class TestOutliers:
    def test_a_slow_run_is_marked_and_stays(self) -> None:
        runs = list(simulated().runs)
        runs[9] = replace(runs[9], decode_s=runs[9].decode_s * 1.5)
        (found,) = [each for each in outliers(runs) if each.rate == "decode_tok_s"]
        assert found.run is runs[9] and found.score < -OUTLYING
        assert sum(each.decode_tok_s.count for each in by_length(runs)) == 28

    def test_noise_is_seldom_marked(self) -> None:
        marked = sum(len(outliers(simulated(seed, block_noise=0).runs)) for seed in range(200))
        assert marked / (200 * 2 * 28) < 0.02

    def test_one_run_beside_equal_ones(self) -> None:
        runs = list(simulated(noise=0, block_noise=0).runs)
        assert outliers(runs) == []
        runs[4] = replace(runs[4], prompt_s=runs[4].prompt_s * 1.01)
        assert [each.run for each in outliers(runs)] == [runs[4]]

    def test_no_runs(self) -> None:
        assert outliers([]) == []
