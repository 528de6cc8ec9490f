"""The pages that are made from the code are what the code says now.

`UPDATE_GOLDEN=1 pytest tests/unit/test_reference.py` writes them anew; read the difference before you commit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from moehost import commands, reference
from moehost.cli import main

DOCS = Path(__file__).parents[2] / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "settings.md": reference.page,
    "cli.md": lambda: commands.page(main, "moehost"),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_says(name: str) -> None:
    path, text = DOCS / name, PAGES[name]()
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


def every(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from every(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


@pytest.mark.parametrize(("path", "command"), [pytest.param(*each, id=each[0]) for each in every(main, "moehost")])
def test_each_command_is_there_with_its_options_and_an_example_of_itself(path: str, command: click.Command) -> None:
    _, _, section = commands.page(main, "moehost").partition(f"# {path}\n")
    section = section.partition("\n#")[0]
    for parameter in command.params:
        names = (
            [parameter.make_metavar(click.Context(command))]
            if parameter.param_type_name == "argument"
            else parameter.opts
        )
        assert [each for each in names if each not in section] == []
    assert "```sh\n" in section, "has no example"
    assert path in section.partition("```sh\n")[2]


def test_texts_are_no_markup() -> None:
    """What a help says with marks of Markdown's is seen as it is written, on the page as on a terminal."""

    @click.group()
    def group() -> None:
        """Nothing."""

    @group.command()
    @click.option("--kind", type=click.Choice(["a", "b"]), help="One of <a> | *b*, x<=1, see `x*y`.")
    def show(kind: str) -> None:
        """Say it_all.

        \b
        Example:
            p show --kind a \\
                   | less
        """

    text = commands.page(group, "p")
    assert "Say it_all.\n" in text
    assert "| `--kind [a/b]` | One of \\<a> \\| \\*b\\*, x<=1, see `x*y`. |" in text
    assert "```sh\np show --kind a \\\n       | less\n```\n" in text
