"""Faster, slower, or not distinguishable: mistakes are rare, and what is large is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from moehost.comparison import Comparison, ComparisonError, compare
from moehost.runs import Session
from tests.fixtures.benchmark import LENGTHS, simulated

# A machine that others use, too: blocks differ by 5 %, runs of a block by 5 %.
NOISY = {"noise": 0.05, "block_noise": 0.05}


def verdicts(count: int, **after: float) -> list[Comparison]:
    """Comparisons of two simulated benchmarks each, on a noisy machine."""
    return [
        compare(simulated(2 * seed, **NOISY), simulated(2 * seed + 1, **{**NOISY, **after})) for seed in range(count)
    ]


class TestVerdict:
    def test_an_unchanged_machine_is_seldom_called_slower(self) -> None:
        found = [each.verdict for each in verdicts(200)]
        assert found.count("slower") <= 4 and found.count("faster") <= 4

    def test_half_the_speed_is_always_slower(self) -> None:
        assert {each.verdict for each in verdicts(100, speed=0.5)} == {"slower"}

    def test_twice_the_speed_is_always_faster(self) -> None:
        assert {each.verdict for each in verdicts(100, speed=2.0)} == {"faster"}

    def test_what_only_hits_long_prompts_is_found(self) -> None:
        speed = {tokens: 0.6 if tokens > 1639 else 1.0 for tokens in LENGTHS}
        found = compare(simulated(1), simulated(2, speed=speed))
        assert found.verdict == "slower"
        assert found.prompt.ratio == pytest.approx(0.6 ** (4 / 7), rel=0.03)
        assert found.prompt.by_length[550] == pytest.approx(1, abs=0.05)
        assert found.prompt.by_length[16000] == pytest.approx(0.6, abs=0.05)

    def test_both_intervals_hold_the_truth_nineteen_times_in_twenty(self) -> None:
        """The moods of a block are those of both rates, so the two intervals err together, and seldomer."""
        held = sum(
            all(rate.interval.low <= 0.9 <= rate.interval.high for rate in (each.prompt, each.decode))
            for each in verdicts(200, speed=0.9)
        )
        assert held / 200 > 0.93

    @pytest.mark.parametrize(
        ("speed", "verdict"),
        [
            (1.0, "not distinguishable"),
            (0.98, "not distinguishable"),
            (0.96, "slower"),
            (1.02, "not distinguishable"),
            (1.04, "faster"),
        ],
    )
    def test_without_noise_the_tolerance_decides(self, speed: float, verdict: str) -> None:
        quiet = {"noise": 0.0, "block_noise": 0.0}
        found = compare(simulated(1, **quiet), simulated(2, **quiet, speed=speed))
        assert found.verdict == verdict
        assert found.decode.interval == pytest.approx((speed, speed))

    def test_the_tolerance_is_the_owners(self) -> None:
        before, after = (
            simulated(1, noise=0.001, block_noise=0.001),
            simulated(2, noise=0.001, block_noise=0.001, speed=0.95),
        )
        assert compare(before, after).verdict == "slower"
        assert compare(before, after, tolerance=0.1).verdict == "not distinguishable"
        assert (
            compare(before, simulated(2, noise=0.001, block_noise=0.001, speed=0.99), tolerance=0).verdict == "slower"
        )

    def test_slower_prompts_outweigh_faster_answers(self) -> None:
        after = simulated(2)
        mixed = replace(
            after, runs=tuple(replace(r, prompt_s=2 * r.prompt_s, decode_s=r.decode_s / 2) for r in after.runs)
        )
        found = compare(simulated(1), mixed)
        assert (found.prompt.verdict, found.decode.verdict, found.verdict) == ("slower", "faster", "slower")


def test_the_interval_against_scipy() -> None:
    before, after = simulated(1), simulated(2, blocks=6, speed=0.97)
    means = [
        [np.mean([np.log(run.decode_tok_s) for run in each.runs if run.block == block]) for block in range(blocks)]
        for each, blocks in ((before, 4), (after, 6))
    ]
    expected = scipy_stats.ttest_ind(means[1], means[0], equal_var=False).confidence_interval(0.975)
    found = compare(before, after).decode
    assert found.interval == pytest.approx(tuple(np.exp(expected)))
    assert found.ratio == pytest.approx(np.exp(np.mean(means[1]) - np.mean(means[0])))


class TestInvariants:
    @settings(max_examples=20, deadline=None)
    @given(scale=st.floats(0.01, 100), shuffle=st.randoms(use_true_random=False))
    def test_scale_of_both_and_order_do_not_matter(self, scale: float, shuffle: object) -> None:
        def changed(session: Session) -> Session:
            runs = [
                replace(run, prompt_s=run.prompt_s * scale, decode_s=run.decode_s * scale) for run in session.runs
            ]
            shuffle.shuffle(runs)  # type: ignore[attr-defined]
            return replace(session, runs=tuple(runs))

        before, after = simulated(1), simulated(2, speed=0.95)
        was, now = compare(before, after), compare(changed(before), changed(after))
        assert now.verdict == was.verdict
        for one, other in ((was.prompt, now.prompt), (was.decode, now.decode)):
            assert other.ratio == pytest.approx(one.ratio)
            assert other.interval == pytest.approx(one.interval)

    def test_the_other_way_round(self) -> None:
        before, after = simulated(1), simulated(2, speed=0.9)
        there, back = compare(before, after), compare(after, before)
        assert back.decode.ratio == pytest.approx(1 / there.decode.ratio)
        assert back.decode.interval == pytest.approx((1 / there.decode.interval.high, 1 / there.decode.interval.low))

    def test_what_does_not_count_does_not_matter(self) -> None:
        before, after = simulated(1), simulated(2)
        extra = tuple(replace(run, kind="discarded", prompt_s=99.0) for run in after.runs)
        assert compare(before, replace(after, runs=after.runs + extra)) == compare(before, after)


class TestIncomplete:
    def test_a_block_that_had_only_begun(self) -> None:
        before, after = simulated(1), simulated(2)
        begun = replace(after, runs=after.runs[:23])
        found = compare(before, begun)
        assert (found.blocks_before, found.blocks_after) == (4, 3)
        assert found == compare(before, replace(after, runs=after.runs[:21]))

    def test_a_length_that_one_block_lacks_is_no_change(self) -> None:
        quiet = {"noise": 0.0, "block_noise": 0.0}
        before, after = simulated(1, **quiet), simulated(2, **quiet)
        lacking = replace(after, runs=tuple(r for r in after.runs if (r.block, r.prompt_tokens) != (2, 16000)))
        found = compare(before, lacking)
        assert found.prompt.ratio == pytest.approx(1)
        assert found.blocks_after == 4

    def test_only_lengths_of_both_count(self) -> None:
        before, after = simulated(1), simulated(2, lengths=(550, 1100, 64000))
        assert list(compare(before, after).prompt.by_length) == [550, 1100]


class TestRefused:
    @pytest.mark.parametrize(
        ("after", "line"),
        [
            (
                simulated(2, answer_tokens=64),
                "answers had 512 tokens before and 64 after; measure again with the same length",
            ),
            (
                simulated(2, lengths=(300,)),
                "no prompt length was measured in both: 550, .*16000 before and 300 after",
            ),
            (simulated(2, blocks=1), "4 full blocks before and 1 after: it takes two in each"),
            (Session({}), "no prompt length was measured in both: .* before and none after"),
        ],
    )
    def test_in_one_line(self, after: Session, line: str) -> None:
        with pytest.raises(ComparisonError, match=line):
            compare(simulated(1), after)

    def test_a_tolerance_that_is_none(self) -> None:
        with pytest.raises(ComparisonError, match="relative"):
            compare(simulated(1), simulated(2), tolerance=3)
