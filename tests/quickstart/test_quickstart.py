"""docs/quickstart.md, followed: each block that is marked is run as it stands, and says what the page says it does.

Marks are comments before a block: `run`, with a regular expression for what must be seen; `values`, which are the
reader's own and come from here; `add`, which the reader's editor puts into the node's file.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures.node import ROOT
from tests.quickstart.conftest import LOGIN, MODEL, Desk, on_node

PAGE = (ROOT / "docs/quickstart.md").read_text()
MARKED = re.compile(r"^<!-- (values|run|add)(?:: ([^\n]*))? -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SOURCE = f"file:.sandbox/{MODEL.name}"
# What the machine of the test has otherwise than that of the page: no cards, and so no engine of its own.
INSTEAD = {"gpu": "off", "engine": {"source": "package"}}


@dataclass(frozen=True)
class Block:
    """A marked block of the page, under its heading."""

    kind: str
    sees: str
    text: str
    heading: str


def blocks() -> list[Block]:
    found = []
    for match in MARKED.finditer(PAGE):
        heading = PAGE[: match.start()].rpartition("\n## ")[2].partition("\n")[0]
        found.append(Block(match[1], match[2] or "", match[3], heading))
    return found


def values(desk: Desk) -> dict[str, str]:
    """The reader's own values, by the names that the page gives them."""
    (block,) = (each for each in blocks() if each.kind == "values")
    names = re.findall(r"^export (\w+)=", block.text, re.MULTILINE)
    own = {
        "NODE": "epyc",
        "ADDRESS": desk.address,
        "LOGIN": LOGIN,
        "FINGERPRINT": desk.fingerprint,
        "MODEL": SOURCE.removeprefix("file:"),
    }
    assert sorted(own) == sorted(names)
    return own


def added(desk: Desk) -> str:
    """What the page adds to the node's file, with the values of this machine."""
    (block,) = (each for each in blocks() if each.kind == "add")
    settings = json.loads(block.text)
    (service,) = settings["services"]
    service["model"]["source"] = SOURCE
    # One thread: two that wait for each other get nowhere on a busy computer.
    service |= {"context": 8192, "ubatch": 512, "threads": 1, "threads_batch": 1}
    settings["gateway"]["host"] = desk.address
    return json.dumps(settings | INSTEAD)


@pytest.mark.parametrize("number", [number for number, each in enumerate(blocks()) if each.kind == "run"])
def test_a_step(desk: Desk, tmp_path: Path, number: int) -> None:
    block = blocks()[number]
    (tmp_path / "added.json").write_text(added(desk))
    editor = f"{sys.executable} {ROOT}/tests/quickstart/editor.py {tmp_path}/added.json"
    done = desk.run(block.text, EDITOR=editor, **values(desk))
    # What a reader of a failed test wants to see, and of a good one of the page's own examples.
    print(f"== {block.heading}\n{block.text}\n{done.stdout}")
    assert done.returncode == 0, done.stdout
    assert re.search(block.sees, done.stdout, re.MULTILINE), f"{block.sees!r} is not in {done.stdout}"


def test_every_tick_has_a_block_and_every_block_a_tick() -> None:
    ticked = set(re.findall(r"^## (.* ✓)$", PAGE, re.MULTILINE))
    followed = {each.heading for each in blocks()}
    # The first step is how the environment of the tests came about.
    assert ticked - followed == {"1. moehost on your computer ✓"}
    assert followed <= ticked


def test_the_key_is_nobody_elses(desk: Desk) -> None:
    header = desk.home / "moehost.header"
    assert header.stat().st_mode & 0o077 == 0
    assert re.fullmatch(r"Authorization: Bearer [\w-]{43}\n", header.read_text())


def test_the_node_is_root_by_sudo_only() -> None:
    """The page's user is an ordinary one, as autoinstall makes it."""
    assert on_node("sshd -T | grep -i ^permitrootlogin") == "permitrootlogin without-password"
    assert on_node("ls -A /root/.ssh 2>/dev/null || true") == ""
