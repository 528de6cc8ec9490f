"""What a llama-server says in `/metrics`, in moehost's names. Standard library only, as it runs on the node.

Engines prefix their names (`llamacpp:`) and spell some differently. Each question empties the bucket that the server
computes its rates from, so these are dropped: a rate is the quotient of two counters. Source: ik_llama.cpp,
examples/server/server.cpp, `/metrics`; llama.cpp, tools/server.
"""

from __future__ import annotations

from moehost import exposition

COUNTERS = {
    "prompt_tokens_total": "moehost_prompt_tokens_total",
    "prompt_seconds_total": "moehost_prompt_seconds_total",
    "prompt_tokens_cached_total": "moehost_prompt_cached_tokens_total",
    "tokens_predicted_total": "moehost_predicted_tokens_total",
    "tokens_predicted_seconds_total": "moehost_predicted_seconds_total",
    "spec_decode_num_draft_tokens_total": "moehost_draft_tokens_total",
    "spec_decode_num_accepted_tokens_total": "moehost_draft_accepted_tokens_total",
}
GAUGES = {
    "requests_processing": "moehost_requests_processing",
    "requests_deferred": "moehost_requests_deferred",
    "kv_cache_usage_ratio": "moehost_kv_cache_usage_ratio",
}


def counters(text: str) -> dict[str, float]:
    """The counters of a server. Raises ValueError for a text that is none of a server's."""
    found = _renamed(text, COUNTERS)
    if "moehost_predicted_tokens_total" not in found:
        raise ValueError("no counters in the answer; is --metrics among the server's flags?")
    return found


def gauges(text: str) -> dict[str, float]:
    """What the server is at just now."""
    return _renamed(text, GAUGES)


def _renamed(text: str, names: dict[str, str]) -> dict[str, float]:
    values = {metric.rpartition(":")[2]: value for metric, value in exposition.parse(text).items()}
    return {ours: values[theirs] for theirs, ours in names.items() if theirs in values}
