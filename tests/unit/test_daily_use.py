"""Fast enough for every day: the owner's needs against medians, and what no measured length tells."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moehost.daily_use import Needs, daily_use, first_token_s
from moehost.runs import Session
from moehost.stats import by_length
from tests.fixtures.benchmark import decode_tok_s, prompt_s, simulated

QUIET = {"noise": 0.0, "block_noise": 0.0}


class TestVerdict:
    def test_every_need_is_met(self) -> None:
        found = daily_use(simulated(**QUIET), Needs(decode_tok_s=20, first_token_1k_s=8, first_token_16k_s=45))
        assert found.verdict == "fast enough"
        assert [check.is_met for check in found.checks] == [True, True, True]
        assert found.checks[0].found == pytest.approx(decode_tok_s(16000))

    @pytest.mark.parametrize("needs", [Needs(21, 8, 45), Needs(20, 6, 45), Needs(20, 8, 40)])
    def test_one_need_that_is_not_met_is_too_slow(self, needs: Needs) -> None:
        found = daily_use(simulated(**QUIET), needs)
        assert found.verdict == "too slow"
        assert [check.is_met for check in found.checks].count(False) == 1

    def test_what_was_not_measured_is_not_called_fast(self) -> None:
        short = simulated(lengths=(550, 1100))
        found = daily_use(short, Needs())
        assert found.verdict == "not measured"
        assert (found.checks[2].found, found.checks[2].is_met) == (None, None)
        assert daily_use(short, Needs(first_token_1k_s=1.0)).verdict == "too slow"

    def test_needs_that_nobody_has(self) -> None:
        assert daily_use(simulated(), Needs(first_token_16k_s=None)).verdict == "fast enough"
        assert daily_use(simulated(), Needs(None, None, None)).verdict == "not measured"

    def test_nothing_was_measured(self) -> None:
        assert daily_use(Session({}), Needs()).verdict == "not measured"

    def test_runs_that_do_not_count(self) -> None:
        session = simulated(**QUIET)
        bad = tuple(replace(run, kind="discarded", first_token_s=900.0) for run in session.runs)
        assert daily_use(replace(session, runs=session.runs + bad), Needs()).verdict == "fast enough"


class TestFirstToken:
    def estimate(self, lengths: tuple[int, ...], tokens: int) -> float | None:
        return first_token_s(by_length(simulated(lengths=lengths, **QUIET).runs), tokens)

    def test_between_two_lengths_on_their_line(self) -> None:
        assert self.estimate((550, 1100), 1024) == pytest.approx(prompt_s(1024) + 0.05)

    def test_a_length_that_was_measured(self) -> None:
        assert self.estimate((512, 1024, 4096), 1024) == pytest.approx(prompt_s(1024) + 0.05)

    @pytest.mark.parametrize(
        ("lengths", "tokens", "is_known"),
        [((16000,), 16384, True), ((14800,), 16384, False), ((1100,), 1024, True), ((1200,), 1024, False)],
    )
    def test_a_tenth_beyond_the_outermost_length(self, lengths: tuple[int, ...], tokens: int, is_known: bool) -> None:
        found = self.estimate(lengths, tokens)
        assert (found is not None) is is_known
        if found is not None:
            assert found == pytest.approx((prompt_s(lengths[0]) + 0.05) * tokens / lengths[0])

    def test_lengths_too_far_apart(self) -> None:
        assert self.estimate((500, 2000), 1024) is not None
        assert self.estimate((500, 2001), 1024) is None
