"""Run test suites side by side, with a log of each; in the end, what failed and why: `scripts/suites.py --help`."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOGS = Path(".sandbox/logs")
# How often a suite that runs on is spoken of.
PATIENCE_S = 120
# What pytest says of a failure: the reason, the place, the test; of Make and Molecule, that there was one.
TELLING = re.compile(r"^(E  |FAILED |ERROR |_{5,} |[\w/.-]+\.py:\d+: |fatal: |make.*\*\*\*|.*Error in |    --> )")
# Molecule draws a frame around what its commands say, and breaks their lines, where it takes a log for a terminal.
ENVIRONMENT = {"MOLECULE_COMMAND_BORDERS": "false"}
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
AT_ONCE_LINES, IN_THE_END_LINES = 60, 20


@dataclass
class Suite:
    """
    A target of the Makefile, while it runs and afterwards.

    + again: whether it has failed in company, and has the computer for itself now
    """

    target: str
    again: bool = False
    process: subprocess.Popen[bytes] | None = None
    began_s: float = 0
    took_s: float | None = None

    @property
    def log(self) -> Path:
        return LOGS / f"{self.target}{'-alone' if self.again else ''}.log"

    def start(self) -> None:
        self.began_s = time.monotonic()
        command = ["make", "--no-print-directory", self.target]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        """Whether it is through; says so once."""
        if self.process is None or self.process.poll() is None:
            return False
        self.took_s = time.monotonic() - self.began_s
        say(f"== {self.verdict}")
        if self.has_failed:
            say(indented(why(self.log)[-AT_ONCE_LINES:]))
        return True

    @property
    def has_failed(self) -> bool:
        return self.process is None or self.process.returncode != 0

    @property
    def verdict(self) -> str:
        name = f"{self.target}, once more and alone" if self.again else self.target
        if self.process is None or self.took_s is None:
            return f"{name}: not run to its end"
        return f"{name}: {'FAILED' if self.has_failed else 'passed'} in {self.took_s:.0f} s ({self.log})"

    def end(self) -> None:
        """Stop it as Ctrl-C would, so that it takes its nodes away, and wait for it."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait()


def say(text: str) -> None:
    print(text, flush=True)


def indented(lines: Sequence[str]) -> str:
    return "\n".join(f"   {line}" for line in lines)


def why(log: Path) -> list[str]:
    """The lines of a log that say why a suite failed, else all of them."""
    lines = [COLOUR.sub("", line).rstrip() for line in log.read_text(errors="replace").splitlines()]
    telling = [line for line in lines if TELLING.match(line)]
    return telling if any(line.startswith(("E  ", "FAILED ", "ERROR ")) for line in telling) else lines


def run(suites: Sequence[Suite], at_once: int) -> None:
    """All of them, so many at a time, in their order; a failure stops none of the others."""
    waiting, under_way = list(suites), list[Suite]()
    spoke_s = time.monotonic()
    while waiting or under_way:
        while waiting and len(under_way) < at_once:
            under_way.append(waiting.pop(0))
            under_way[-1].start()
            say(f"   {under_way[-1].target} begins")
        time.sleep(0.2)
        under_way = [each for each in under_way if not each.has_ended()]
        if time.monotonic() - spoke_s > PATIENCE_S and under_way:
            spoke_s = time.monotonic()
            say("   still " + ", ".join(f"{each.target} ({spoke_s - each.began_s:.0f} s)" for each in under_way))


def main() -> int:
    """0 when all have passed, 1 when one has not, 2 on bad input."""
    parser = argparse.ArgumentParser(
        description="Run targets of the Makefile side by side; a failure stops none of the others. One that fails in "
        "company is run once more by itself, and that counts; both are told.",
        epilog="example: scripts/suites.py --at-once 3 test-trust test-router test-engine --alone test-vm",
    )
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="how many run side by side (default: 1)")
    parser.add_argument("--alone", nargs="*", default=[], metavar="TARGET", help="one by one, after all others")
    parser.add_argument("target", nargs="*", metavar="TARGET", help="e.g. test-quick")
    words = parser.parse_args()
    if words.at_once < 1 or not words.target + words.alone:
        parser.error("name targets, and at least one at once")
    os.chdir(ROOT)
    LOGS.mkdir(parents=True, exist_ok=True)
    together, alone = ([Suite(each) for each in some] for some in (words.target, words.alone))
    again: list[Suite] = []
    try:
        run(together, words.at_once)
        # Limits of time hold on a busy computer, but not on every one that is as busy as this makes it.
        again = [Suite(each.target, again=True) for each in together if each.has_failed and words.at_once > 1]
        run(again, 1)
        run(alone, 1)
    except KeyboardInterrupt:
        for each in [*together, *again, *alone]:
            each.end()
        say("== interrupted")
    suites = [*together, *again, *alone]
    say("== suites:\n" + indented([each.verdict for each in suites]))
    for each in suites:
        if each.has_failed and each.process:
            say(f"== why {each.target} failed:\n" + indented(why(each.log)[-IN_THE_END_LINES:]))
    # The last word on a target counts.
    return 1 if any({each.target: each.has_failed for each in suites}.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
