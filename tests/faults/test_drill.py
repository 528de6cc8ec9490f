"""The drill: every fault is caused, and ends as its row in docs/reliability.md says."""

import pytest

from moehost import sandbox
from tests.faults import engines, machines, models, packages, rooms, services, table

FAULTS = [each for module in (packages, rooms, models, services, machines, engines) for each in module.FAULTS]


@pytest.mark.parametrize("fault", FAULTS, ids=[each.play.__name__ for each in FAULTS])
def test_it_ends_as_it_should(fault, drill):
    before = drill.settings
    try:
        seen = fault.play(drill)
    except BaseException:
        # The next fault finds the node as this one did.
        drill.settings = before
        sandbox.up(drill.node.name, print)
        drill.deploy()
        raise
    assert drill.took_s is not None
    took_s, drill.took_s = drill.took_s, None
    drill.settled()
    print(f"\n    {fault.title}: {seen} ({took_s:.0f} s)")
    table.record(fault.title, seen, took_s)
