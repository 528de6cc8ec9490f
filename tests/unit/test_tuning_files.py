"""The files of a tuning, as they are on the node: golden ones in `tests/fixtures/tuning`."""

from pathlib import Path

import pytest

from moehost import topology
from moehost.huge_page_pools import pools
from moehost.settings_tuning import Tuning as Wish
from moehost.tuning import tuning
from roles.host_tuning.operations import contents
from tests.fixtures.tuned_host import texts

GOLDEN = Path(__file__).parents[1] / "fixtures/tuning"
HOST = topology.parse(texts(2), "/srv/models")
WISH = Wish.model_validate({"boost": False, "cpu_latency_us": 20, "kernel_parameters": ["iommu=pt"]})
FILES = contents(tuning(WISH, HOST, {}, pools([250 << 30], "1G", HOST)))


@pytest.mark.parametrize("path", FILES)
def test_a_file(path: str) -> None:
    assert FILES[path] == (GOLDEN / Path(path).name).read_text()


def test_there_is_none_too_many() -> None:
    assert {Path(path).name for path in FILES} == {path.name for path in GOLDEN.iterdir()}
