"""Natural text for the prompts of a benchmark, in an order that no other prompt has.

Speculative decoding and the routing of experts depend on what a text is like, so it is sentences and programs of
different kinds, not random tokens. Standard library only: nodes cut their prompts themselves.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

# Between paragraphs; and what the first line of a section begins with, its title.
BREAK = "\n\n"
TITLE = "# "


def passage(prose: str, characters: int, seed: int, label: str) -> str:
    """A text of at least so many characters whose first line is of this seed and label alone.

    Whole paragraphs of `prose` follow, without the titles, each of them once before one comes again; a passage of any
    length has all kinds of text. The same arguments give the same text with every version of Python. Raises
    ValueError for a prose without a paragraph.
    """
    sections = _sections(prose)
    if not sections:
        raise ValueError("the prose has no paragraph; write some, with an empty line between two of them")
    # The digest comes first: what two prompts have in common at the start, a server may keep in a cache.
    digest = hashlib.sha256(f"{seed} {label}".encode()).hexdigest()[:16]
    text = [f"{digest}: {label}, seed {seed}\n"]
    length = len(text[0])
    order = random.Random(f"{seed} {label}")  # noqa: S311
    while length < characters:
        for paragraph in _mixed(sections, order):
            text.append(f"\n{paragraph}\n")
            length += len(text[-1])
            if length >= characters:
                break
    return "".join(text)


def _sections(prose: str) -> list[list[str]]:
    """The paragraphs of each section."""
    sections: list[list[str]] = [[]]
    for block in filter(None, (each.strip("\n") for each in prose.split(BREAK))):
        if block.startswith(TITLE):
            sections.append([])
        else:
            sections[-1].append(block)
    return [section for section in sections if section]


def _mixed(sections: list[list[str]], order: random.Random) -> Iterator[str]:
    """All paragraphs, each once, those of a section spread evenly over the whole."""
    placed: list[tuple[float, str]] = []
    for section in sections:
        # Of Python's random numbers, those of `random` alone stay the same from version to version.
        shuffled = sorted(section, key=lambda _: order.random())
        # As many equal parts as there are paragraphs, and one of them somewhere in each.
        placed += [((part + order.random()) / len(section), text) for part, text in enumerate(shuffled)]
    return (text for _, text in sorted(placed))
