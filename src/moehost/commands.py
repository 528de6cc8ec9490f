"""The commands as a page to read; `docs/cli.md` is this page."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator

import click

INTRODUCTION = """\
# Commands

What each command does, takes and gives. `moehost COMMAND --help` says the same on a terminal. Data goes to standard
output, talk to standard error; a mistake is one line and exit code 2. Commands are given in moehost's own folder.
Machines are provisioned by pyinfra: `pyinfra inventory deploy.py`.

INVENTORY, and what `--inventory` names, is a folder with a `hosts.py`, such a file, or `ansible:PATH`
([ansible.md](ansible.md)). @HOST is a host of it.

This page is made from the code by `moehost commands`.
"""
# Starts a paragraph that click leaves as it is.
VERBATIM = "\b"


def page(program: click.Group, name: str) -> str:
    """The reference in Markdown: a section for each command, in alphabetical order.

    + name: how the program is called
    """
    context = click.Context(program, info_name=name)
    return "\n".join([INTRODUCTION, *_sections(program, context, 2)])


def _sections(group: click.Group, context: click.Context, level: int) -> Iterator[str]:
    for word in sorted(group.commands):
        command = group.commands[word]
        own = command.make_context(word, [], parent=context, resilient_parsing=True)
        yield f"{'#' * level} {own.command_path}\n"
        yield from _body(command, own)
        if isinstance(command, click.Group):
            yield from _sections(command, own, level + 1)


def _body(command: click.Command, context: click.Context) -> Iterator[str]:
    paragraphs = [each for each in inspect.cleandoc(command.help or "").split("\n\n") if each]
    for text in (each for each in paragraphs if not each.startswith(VERBATIM)):
        yield f"{_plain(text)}\n"
    if isinstance(command, click.Group):
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```\n"
    # Arguments have no help of their own, and stand in the line above.
    if rows := [record for each in command.params if (record := each.get_help_record(context)) and record[1]]:
        yield "| option | meaning |\n| --- | --- |"
        yield from ("| `{}` | {} |".format(names.replace("|", "/"), _plain(text)) for names, text in rows)
        yield ""
    for text in (each for each in paragraphs if each.startswith(VERBATIM)):
        # Its first lines are the mark, and "Example:".
        lines = textwrap.dedent("\n".join(text.splitlines()[2:]))
        yield f"```sh\n{lines}\n```\n"


def _plain(text: str) -> str:
    """A text that Markdown does not take for markup, but for what stands between backticks."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [re.sub(r"([*|]|<(?=[A-Za-z/!]))", r"\\\1", each) for each in parts[::2]]
    return "`".join(parts)
