"""Which line of a unit's journal says why it failed. Standard library only, as it runs on the node, too."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What a line that says why has in it.
REASON = re.compile(r"error|fail|cannot|can't|refus|kill|lack|no such|not enough", re.IGNORECASE)
LONGEST = 200
# Lines that speak of keys are shown to nobody (an extended regular expression, whatever the case).
KEYS = "api.?key|bearer|hf_"


def why(unit: str, lines: Sequence[str]) -> str:
    """The line of a unit's own that names a reason, or nothing; systemd's say only that there was one.

    Of a start that failed it is the first one, what follows comes of it; of a run that ended it is the last one.
    """
    starts = [index for index, line in enumerate(lines) if line.startswith("Starting ")]
    systemds = re.compile(rf"{re.escape(unit)}: |(Starting|Started|Stopping|Stopped|Failed to start) ")
    own = [line for line in lines[starts[-1] if starts else 0 :] if line.strip() and not systemds.match(line)]
    reasons = list(filter(REASON.search, own)) or own
    line = (reasons[0] if starts else reasons[-1]) if reasons else ""
    return line.strip()[:LONGEST]
