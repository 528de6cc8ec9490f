"""Prometheus' text format, written and read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moehost.exposition import Kind, Sample, parse, render

KINDS = {"b_bytes": Kind("gauge", "Bytes\nin a \\ folder."), "a_total": Kind("counter", "Things.")}


def test_each_name_is_told_once_with_help_and_type_in_the_order_of_the_kinds() -> None:
    samples = [Sample("a_total", 1, {"x": "1"}), Sample("b_bytes", 5e11), Sample("a_total", 0.5, {"x": "2"})]
    assert render(samples, KINDS) == (
        "# HELP b_bytes Bytes\\nin a \\\\ folder.\n# TYPE b_bytes gauge\nb_bytes 500000000000\n"
        '# HELP a_total Things.\n# TYPE a_total counter\na_total{x="1"} 1\na_total{x="2"} 0.5\n'
    )


def test_a_name_without_a_sample_is_left_out() -> None:
    assert render([], KINDS) == ""


def test_a_name_that_has_no_meaning_is_refused() -> None:
    with pytest.raises(KeyError):
        render([Sample("other", 1)], KINDS)


def test_labels_are_escaped() -> None:
    text = render([Sample("a_total", 1, {"x": 'a "b"\\c\nd'})], KINDS)
    assert text.splitlines()[-1] == 'a_total{x="a \\"b\\"\\\\c\\nd"} 1'


def test_truth_is_a_number() -> None:
    assert render([Sample("b_bytes", True), Sample("b_bytes", False)], KINDS).endswith("\nb_bytes 1\nb_bytes 0\n")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_is_written_is_read(value: float) -> None:
    assert parse(render([Sample("b_bytes", value, {"x": "y"})], KINDS)) == {"b_bytes": value}


def test_comments_times_and_what_is_no_number_are_left_out() -> None:
    text = '# TYPE a counter\na 1 1700000000000\n\nb nan\nc +Inf\nd x\n<html>\ne:f{g="h"} 2.5e3\n'
    assert parse(text) == {"a": 1.0, "e:f": 2500.0}
