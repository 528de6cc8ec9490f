"""Engines that can't be built, or are no good: the stand-in (tests/stand_in) has a commit for each fault."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.drill import Drill, failed, faults
from tests.faults.rooms import full
from tests.fixtures.node import changes
from tests.stand_in import repository

FAULTS, fault = faults()
URL = "/srv/git/engine"
WORKSHOP = "/var/lib/moehost-build"
RELEASES = "/opt/moehost/engine/releases"
BACK = "the deploy says why, and the last good engine serves again"


class Engines:
    """The commits of the stand-in, on the node."""

    commits: dict[str, str] = {}

    @classmethod
    def bring(cls, drill: Drill, folder: Path) -> None:
        """Have the repository on the node."""
        cls.commits = repository.make(folder / "engine")
        drill.run(f"rm -rf {URL} && mkdir -p {URL}")
        subprocess.run(["podman", "cp", f"{folder}/engine/.", f"{drill.node.name}:{URL}"], check=True)


def choose(drill: Drill, commit: str) -> None:
    """Have an engine of this commit in the settings."""
    drill.settings = drill.settings | {
        "engine": {"source": "git", "url": URL, "commit": Engines.commits[commit], "cuda": "off", "canary_share": 0}
    }


def current(drill: Drill) -> str:
    """The release that is current."""
    return drill.run("basename $(readlink /opt/moehost/engine/current)")


@fault(
    "the build of an engine is killed (SIGKILL)",
    "the deploy says so, the engine of before serves on, the next deploy builds and switches",
)
def build_killed(drill: Drill) -> str:
    choose(drill, "good")
    # Nothing of a drill before: a build from the cache would be over too soon.
    drill.run(f"rm -rf {WORKSHOP}/ccache {RELEASES}/{Engines.commits['good'][:12]}-*")
    with drill.goes_on():
        with drill.deploying() as deploy:
            deploy.reach("% built", 400)
            drill.run("systemctl kill --signal=KILL moehost-build.service")
            ended = deploy.end()
        failed(ended, "does not build (signal)")
        assert drill.run(f"ls -A {RELEASES} | grep '^[.]' || true") == ""
    drill.clock()
    drill.converges("Service | Switch to the engine that is next")
    assert current(drill).startswith(Engines.commits["good"][:12])
    return '"does not build (signal)"; then built from the cache, proven and switched to'


@fault(
    "the disk is full in a build",
    "the deploy says so, nothing half made is left, the engine of before serves on",
)
def full_in_a_build(drill: Drill) -> str:
    before, releases = drill.settings, drill.run(f"ls -A {RELEASES}")
    choose(drill, "better")
    drill.run(f"mkdir -p {WORKSHOP}/builds && chown moehost-build: {WORKSHOP}/builds")
    with drill.goes_on():
        with full(drill, f"{WORKSHOP}/builds"):
            # A little room, so that it begins.
            drill.run(f"truncate -s 1600k {WORKSHOP}/builds/filler; chown moehost-build: {WORKSHOP}/builds")
            said = drill.fails("does not build")
            assert "No space left on device" in said, said[-1500:]
            assert drill.run(f"ls -A {RELEASES}") == releases
        drill.settings = before
        drill.clock()
        changes(drill.deploy())
        drill.recovered()
    return '"No space left on device", no release half made'


def no_good(drill: Drill, commit: str, sentence: str, cause: str, start_timeout_s: int = 20) -> str:
    """An engine is switched to that is no good; the line of the journal that names the cause."""
    before, good, since = drill.settings, current(drill), drill.run("date +%s")
    choose(drill, commit)
    drill.change(start_timeout_s=start_timeout_s)
    drill.clock()
    drill.fails("does not become current", sentence)
    drill.recovered()
    assert current(drill) == good
    assert drill.answers()
    assert drill.run("ls /run/systemd/system.control 2>/dev/null || true") == ""
    said = drill.run(f"journalctl --no-pager --output cat --since @{since} --unit {drill.node.unit}")
    lines = [line for line in said.splitlines() if cause in line]
    assert lines, said
    drill.settings = before
    # Its link leads to the other one still.
    changes(drill.deploy())
    return f'"{lines[0].partition(".service: ")[2] or lines[0]}"'


@fault("an engine crashes at its start", BACK)
def crashes(drill: Drill) -> str:
    return no_good(drill, "crash-at-start", "does not start with", "status=6/ABRT")


@fault("an engine hangs in its load", BACK)
def hangs(drill: Drill) -> str:
    return no_good(drill, "hang-in-load", "does not start with", "no answer after 20 s")


@fault("an engine answers garbage", BACK)
def garbage(drill: Drill) -> str:
    no_good(drill, "garbage", "answers the canary with rubbish", "Started ")
    return "\"answers the canary with rubbish: '@@@@@@@...'\""


@contextmanager
def limited(drill: Drill) -> Iterator[str]:
    """The memory of the node, or of its server where Podman can't limit a container that runs; says which."""
    there = (
        subprocess.run(["podman", "update", "--memory", "3g", drill.node.name], capture_output=True).returncode == 0
    )
    drop_in = f"/run/systemd/system/{drill.node.unit}.d"
    if not there:
        drill.run(f"mkdir -p {drop_in} && printf '[Service]\\nLimitAS=3G\\n' >{drop_in}/limit.conf")
        drill.run("systemctl daemon-reload")
    try:
        yield "at 3 GiB of the container" if there else "at LimitAS=3G"
    finally:
        if there:
            subprocess.run(["podman", "update", "--memory", "1t", drill.node.name], capture_output=True, check=True)
        else:
            drill.run(f"rm -r {drop_in} && systemctl daemon-reload")


@fault("an engine leaks until the memory ends", BACK)
def leaks(drill: Drill) -> str:
    with limited(drill) as where:
        # The kernel ends it, or its own allocator.
        cause = "status=9/KILL" if "container" in where else "status=6/ABRT"
        # A busy computer takes its time to give 3 GiB away.
        seen = no_good(drill, "leak", "does not start with", cause, start_timeout_s=120)
    return f"{where}: {seen}"
