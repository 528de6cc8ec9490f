"""Whoever has started a deploy hears of it, and a deploy that nobody hears of ends."""

import json
import os
import subprocess
import sys

from pyinfra.context import ctx_host

from moehost.deploying import EVENTS
from roles.fleet import Fleet
from roles.fleet.operations import looked
from tests.operations.plain import Host

TEXTS = {"condition.kernel": "6.12\n"}


def test_it_tells_how_the_node_is_and_does_nothing(monkeypatch):
    there, here = os.pipe()
    monkeypatch.setenv(EVENTS, str(here))
    with ctx_host.use(Host({Fleet: TEXTS})):
        assert list(looked._inner()) == []
    os.close(here)
    with os.fdopen(there) as events:
        (event,) = map(json.loads, events)
    assert event["looked"] == TEXTS


def test_without_a_listener_it_is_quiet(monkeypatch):
    monkeypatch.delenv(EVENTS, raising=False)
    with ctx_host.use(Host({Fleet: TEXTS})):
        assert list(looked._inner()) == []


def test_a_run_whose_listener_is_gone_ends():
    there, here = os.pipe()
    os.close(there)
    program = "from roles.timing import tell\ntell(host='a', operation='b')\nprint('goes on')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, EVENTS: str(here), "PYTHONPATH": "."},
        pass_fds=(here,),
        capture_output=True,
        text=True,
    )
    os.close(here)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
