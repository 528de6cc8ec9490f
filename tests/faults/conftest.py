"""The node of the drill: it serves a model of three shards, so that one of them can go bad."""

import pytest

from moehost import synthetic
from tests.faults import table
from tests.faults.drill import Drill
from tests.faults.engines import Engines
from tests.fixtures.node import ROOT, changes, instance


@pytest.fixture(scope="session")
def drill(tmp_path_factory):
    """The first instance of the scenario."""
    folder = ROOT / ".sandbox/sharded"
    folder.mkdir(exist_ok=True)
    synthetic.write(folder / "sharded.gguf", synthetic.Shape(shards=3))
    node = instance(tmp_path_factory.mktemp("inventory"))
    source = "file:.sandbox/sharded/sharded-00001-of-00003.gguf"
    made = Drill(node, node.changed_settings(model={"name": "sharded", "source": source}))
    changes(made.deploy())
    Engines.bring(made, tmp_path_factory.mktemp("stand-in"))
    return made


def pytest_terminal_summary(terminalreporter):
    if table.PATH.exists():
        terminalreporter.write_line(table.PATH.read_text())
