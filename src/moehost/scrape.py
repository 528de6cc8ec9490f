"""Asks a llama-server whether it answers, and for its counters. Standard library only, as it runs on the node.

Two quirks decide how: `/metrics` wants a key, and both `/metrics` and (of ik_llama.cpp) `/health` wait in the queue
of inference, behind a whole batch of somebody's prompt. So a server that does not answer in time may be busy, not
dead: `/v1/models`, which waits in no queue, tells one from the other.
"""

from __future__ import annotations

import http.client
from dataclasses import dataclass, field

from moehost import server_figures

READY_S = 5.0
LARGEST = 1 << 20


@dataclass(frozen=True)
class Told:
    """What a server told: counters and gauges in moehost's names, or the problem."""

    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    problem: str = ""


def is_ready(host: str, port: int, limit_s: float = READY_S) -> bool:
    """Whether a server answers, busy or not; one that loads its model does not, or says 503.

    + limit_s: how long `/health` may take, and `/v1/models` after it
    """
    for path in ("/health", "/v1/models"):
        try:
            return _get(host, port, path, limit_s)[0] == 200
        except TimeoutError:
            continue
        except (OSError, http.client.HTTPException):
            return False
    return False


def figures(host: str, port: int, key: str, limit_s: float) -> Told:
    """The server's figures, which are waited for so long."""
    try:
        status, text = _get(host, port, "/metrics", limit_s, key)
        if status != 200:
            return Told(problem=f"HTTP status {status}")
        return Told(server_figures.counters(text), server_figures.gauges(text))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Told(problem=str(error) or type(error).__name__)


def _get(host: str, port: int, path: str, limit_s: float, key: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=limit_s)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        answer = connection.getresponse()
        return answer.status, answer.read(LARGEST).decode("utf-8", "replace")
    finally:
        connection.close()
