"""Passages for a benchmark, and the text that they are made of."""

from __future__ import annotations

import collections
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moehost.prose import passage

FILE = Path(__file__).parents[2] / "templates/bench/prose.txt"
TEXT = FILE.read_text(encoding="utf-8")
BLOCKS = TEXT.rstrip("\n").split("\n\n")
TITLES = [block for block in BLOCKS if block.startswith("# ")]
PARAGRAPHS = [block for block in BLOCKS if not block.startswith("# ")]
WHOLE = sum(len(paragraph) + 2 for paragraph in PARAGRAPHS)


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a passage, without its first line."""
    return text.rstrip("\n").split("\n\n")[1:]


class TestPassage:
    @given(st.integers(0, 3 * WHOLE), st.integers(), st.text(st.characters(categories=["L", "N", "Zs"]), max_size=20))
    def test_it_is_as_long_as_asked_for_and_not_much_longer(self, characters: int, seed: int, label: str) -> None:
        text = passage(TEXT, characters, seed, label)
        assert len(text) >= characters
        assert len(text) <= max(characters, len(text.splitlines()[0]) + 1) + max(map(len, PARAGRAPHS)) + 2

    def test_the_same_arguments_give_the_same_text(self) -> None:
        assert passage(TEXT, 20_000, 7, "run 3") == passage(TEXT, 20_000, 7, "run 3")

    def test_the_text_stays_the_same_with_every_version_of_python(self) -> None:
        made = passage("# A\n\none\n\ntwo\n\nthree\n\n# B\n\nfour\n\nfive\n", 70, 1, "x")
        assert made == "9764ed1a67fade83: x, seed 1\n\nthree\n\nfive\n\nfour\n\none\n\ntwo\n\none\n\nfour\n\nthree\n"

    def test_the_first_line_is_of_its_seed_and_label_alone(self) -> None:
        texts = [passage(TEXT, 100, seed, f"run {run}") for seed in range(20) for run in range(20)]
        assert len({text.splitlines()[0] for text in texts}) == 400
        # No two have more than a few characters in common before they differ.
        assert len({text[:8] for text in texts}) == 400

    def test_the_first_line_names_seed_and_label(self) -> None:
        first = passage(TEXT, 1, 5, "16384 tokens, run 2").splitlines()[0]
        assert re.fullmatch(r"[0-9a-f]{16}: 16384 tokens, run 2, seed 5", first)

    def test_seeds_and_labels_differ_in_their_order(self) -> None:
        orders = [paragraphs(passage(TEXT, WHOLE, seed, label)) for seed in (1, 2) for label in ("a", "b")]
        assert len({tuple(order) for order in orders}) == 4

    @pytest.mark.parametrize("seed", range(5))
    def test_no_paragraph_comes_twice_before_all_have_come_once(self, seed: int) -> None:
        found = paragraphs(passage(TEXT, 3 * WHOLE, seed, "long"))
        rounds = [found[at : at + len(PARAGRAPHS)] for at in range(0, len(found), len(PARAGRAPHS))]
        assert len(rounds) >= 3
        for each in rounds[:-1]:
            assert sorted(each) == sorted(PARAGRAPHS)
        assert len(set(rounds[-1])) == len(rounds[-1])
        assert rounds[0] != rounds[1]

    def test_there_is_nothing_in_it_but_whole_paragraphs(self) -> None:
        assert set(paragraphs(passage(TEXT, 2 * WHOLE, 3, "all"))) <= set(PARAGRAPHS)

    @pytest.mark.parametrize("seed", range(10))
    def test_the_kinds_are_mixed(self, seed: int) -> None:
        section, title = {}, ""
        for block in BLOCKS:
            title = block if block in TITLES else title
            section[block] = title
        half = paragraphs(passage(TEXT, WHOLE // 2, seed, "half"))
        counts = collections.Counter(section[paragraph] for paragraph in half)
        for title in TITLES:
            there = sum(section[paragraph] == title for paragraph in PARAGRAPHS)
            # Half of each section, up to a part more or less.
            assert abs(counts[title] - there / 2) <= 2, title

    @pytest.mark.parametrize("empty", ["", "\n\n", "# A title\n\n# Another\n"])
    def test_a_prose_without_a_paragraph_is_refused(self, empty: str) -> None:
        with pytest.raises(ValueError, match="no paragraph"):
            passage(empty, 10, 1, "x")

    def test_it_is_quick(self) -> None:
        started_s = time.process_time()
        passage(TEXT, 1_000_000, 1, "262144 tokens")
        assert time.process_time() - started_s < 1


class TestText:
    def test_it_is_large_enough_for_a_long_prompt_and_small_enough_to_carry(self) -> None:
        assert 45_000 <= FILE.stat().st_size <= 60_000

    def test_it_is_plain_utf_8(self) -> None:
        text = FILE.read_bytes().decode("utf-8", errors="strict")
        assert {c for c in text if not c.isprintable()} == {"\n"}
        assert not text.startswith("\ufeff")

    def test_a_paragraph_is_no_scrap_and_no_chapter(self) -> None:
        assert [block for block in PARAGRAPHS if not 200 <= len(block) <= 900] == []

    def test_a_title_is_one_line_of_its_own(self) -> None:
        assert BLOCKS[0] in TITLES
        assert [title for title in TITLES if "\n" in title] == []
        assert len(set(TITLES)) == len(TITLES) >= 15

    def test_lines_end_where_they_end_and_one_empty_line_separates(self) -> None:
        assert [line for line in TEXT.splitlines() if line != line.rstrip()] == []
        assert "\n\n\n" not in TEXT
        assert TEXT.endswith("\n") and not TEXT.endswith("\n\n")

    def test_no_sentence_is_there_twice(self) -> None:
        sentences = [each for text in PARAGRAPHS for each in re.split(r"(?<=[.?!])\s+", text) if len(each) > 40]
        assert [each for each, count in collections.Counter(sentences).items() if count > 1] == []
