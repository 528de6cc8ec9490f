"""Whether a computer was quiet: how much of its processors went to others than the node and this program."""

import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CORES = os.cpu_count() or 1
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# Of /proc/stat: user, nice, system, irq, softirq, and what the computer's own host gave to others.
BUSY = (1, 2, 3, 6, 7, 8)
QUIET_SHARE = 0.08


@dataclass
class Share:
    """What others took of all processors, of 1; known when the time is over."""

    of_others: float = 0.0

    @property
    def is_quiet(self) -> bool:
        """Whether that is next to nothing."""
        return self.of_others < QUIET_SHARE


@contextmanager
def watched(node: str) -> Iterator[Share]:
    """Looks at what others take while something is measured on a node, a container."""
    share, began_s, before_s = Share(), time.monotonic(), _others_s(node)
    yield share
    share.of_others = (_others_s(node) - before_s) / (time.monotonic() - began_s) / CORES


def _others_s(node: str) -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    busy_s = sum(int(fields[each]) for each in BUSY) * TICK_S
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["podman", "stats", "--no-stream", "--format", "{{.CPUNano}}", node]
    node_s = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e9
    return busy_s - node_s - spent.ru_utime - spent.ru_stime
