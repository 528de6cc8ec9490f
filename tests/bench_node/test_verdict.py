"""Whether a service that became slower is found, and one that did not is left alone: ten times each."""

import pytest

from moehost import comparison, results
from tests.bench_node.quiet import watched

TIMES = 10
# Rounds in which others kept the computer busy say nothing of the service, and are made again; so many at most.
MOST_ROUNDS = 20
# Ten blocks of one length, with a quarter of a second at least for each figure. A computer that tests run on has
# neighbours, and was seen to change by a fifth from one minute to the next: that is nothing there, half the
# processor is.
SHORT = ("--lengths", 1024, "--runs", 10, "--answer-tokens", 256, "--tolerance", 0.25)


@pytest.fixture(scope="module", autouse=True)
def _restored(benched):
    benched.restore()
    yield
    benched.restore()


def test_half_the_processor_is_slower_and_the_same_is_not(benched):
    """Measured in turns: as it is, as it is, with half of the processor."""
    said = []
    for number in range(MOST_ROUNDS):
        before, same, slowed = (benched.folder / f"{each}-{number}" for each in ("before", "same", "slowed"))
        with watched(benched.node.name) as share:
            first = benched.bench(*SHORT, "--out", before)
            unchanged = benched.bench(*SHORT, "--out", same, "--against", before)
            benched.halve()
            try:
                slower = benched.bench(*SHORT, "--out", slowed, "--against", same)
            finally:
                benched.restore()
        assert first.returncode == 0, first.stderr
        pairs = [comparison.compare(*map(results.load, pair)) for pair in ((before, same), (same, slowed))]
        ratios = [f"{each.prompt.ratio:.2f} and {each.decode.ratio:.2f}" for each in pairs]
        print(f"\nsame {ratios[0]}, slowed {ratios[1]}; others took {share.of_others:.0%}", end="")
        if share.is_quiet:
            said.append((unchanged.returncode, slower.returncode))
        if len(said) == TIMES:
            break
    assert said == [(0, 1)] * TIMES
