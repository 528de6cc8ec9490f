"""Whether a service that became slower is found, and one that did not is left alone: ten times each."""

import pytest

from moehost import comparison, results

TIMES = 10
# Ten blocks of one length, with a quarter of a second at least for each figure. A computer that tests run on has
# neighbours, so 15 % is nothing there; half the processor is.
SHORT = ("--lengths", 1024, "--runs", 10, "--answer-tokens", 256, "--tolerance", 0.15)


@pytest.fixture(scope="module", autouse=True)
def _restored(benched):
    benched.restore()
    yield
    benched.restore()


def test_half_the_processor_is_slower_and_the_same_is_not(benched):
    """Taken in turns, so that what the machine does meanwhile falls on both alike."""
    before = benched.folder / "same-0"
    assert benched.bench(*SHORT, "--out", before).returncode == 0
    said = []
    for n in range(1, TIMES + 1):
        same, slowed = benched.folder / f"same-{n}", benched.folder / f"slowed-{n}"
        unchanged = benched.bench(*SHORT, "--out", same, "--against", before)
        benched.halve()
        try:
            slower = benched.bench(*SHORT, "--out", slowed, "--against", same)
        finally:
            benched.restore()
        said.append((unchanged.returncode, slower.returncode))
        found = [comparison.compare(*map(results.load, pair)) for pair in ((before, same), (same, slowed))]
        print(
            "\n" + "; ".join(f"prompt {each.prompt.ratio:.3f}, answer {each.decode.ratio:.3f}" for each in found),
            end="",
        )
        before = same
    assert said == [(0, 1)] * TIMES
