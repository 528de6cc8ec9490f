"""Broken hosts: a deploy of each fails for its own reason; the mended host converges, and then nothing changes.

The cards, the driver and the container toolkit are stubs; apt, dpkg, kmod, systemd and the roles are real.
"""

import re

import broken as hosts
import pytest

pytestmark = pytest.mark.usefixtures("healthy")


@pytest.fixture(params=hosts.BROKEN, ids=lambda each: each.name)
def broken(request, node, tried):
    """A host that is broken, and mended afterwards if the test has not come to that."""
    case = request.param
    tried[case.name] = False
    node.run(case.breaks)
    if case.stub:
        node.stub.set(**case.stub)
    yield case
    if not tried[case.name]:
        mend(node, case)


def mend(node, case):
    """Take back what was done to a host."""
    if case.stub:
        node.stub.reset()
    node.run(case.mends)


def test_it_fails_for_its_own_reason_and_converges_when_mended(node, broken, tried):
    settings = node.merged_settings(broken.settings)
    failed = node.deploy_cards(settings, broken.deploy) if broken.deploy else node.deploy_cards(settings)
    assert failed.returncode == 1, failed.stdout
    found = {each.name: re.search(each.says, failed.stderr) for each in hosts.BROKEN}
    said = sorted((match.start(), -match.end(), name) for name, match in found.items() if match)
    # What follows from it may be said, too, but after it.
    assert [name for *_, name in said][:1] == [broken.name], failed.stderr

    mend(node, broken)
    if not broken.deploy:
        node.converges()
    tried[broken.name] = True
