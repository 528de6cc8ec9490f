"""The table of the fault drill, and that the page that shows it has the rows that the drill has."""

from pathlib import Path

import pytest

from tests.faults import elsewhere, table

PAGE = (Path(__file__).parents[2] / "docs/reliability.md").read_text()


def test_the_page_shows_each_fault_as_the_drill_has_it() -> None:
    shown = table.rows(PAGE.partition(table.HEAD)[2].partition("\n\n")[0])
    assert {title: cells[0] for title, cells in shown.items()} == table.expected()
    assert list(shown) == list(table.expected())


def test_every_row_of_the_page_was_measured() -> None:
    shown = table.rows(PAGE.partition(table.HEAD)[2].partition("\n\n")[0])
    assert [title for title, cells in shown.items() if not cells[1] or not cells[2].isdigit()] == []


def test_rows_of_several_suites_come_into_one_table(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    first = next(iter(table.expected()))
    table.record(elsewhere.CLOCK, "the same process", 3.4, path)
    table.record(first, "half unpacked", 10.0, path)
    table.record(elsewhere.CLOCK, "another process", 4.6, path)
    found = table.rows(path.read_text())
    assert list(found) == [first, elsewhere.CLOCK]
    assert found[elsewhere.CLOCK][1:] == ("another process", "5")
    with pytest.raises(AssertionError):
        table.record("a fault that nobody knows", "", 1, path)
