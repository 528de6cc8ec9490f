"""Asking a llama-server, which wants a key, waits in its queue, and empties its rates (a simulated one)."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from moehost import scrape, server_figures
from tests.fixtures.busy_server import KEY, BusyServer

HOST = "127.0.0.1"


@pytest.fixture(params=["ik", "llama.cpp"])
def server(request: pytest.FixtureRequest) -> Iterator[BusyServer]:
    with BusyServer(request.param) as found:
        yield found


def test_counters_have_one_name_for_both_engines(server: BusyServer) -> None:
    told = scrape.figures(HOST, server.port, KEY, 5)
    assert told.problem == ""
    own = {"moehost_prompt_cached_tokens_total": 70, "moehost_draft_tokens_total": 9}
    assert told.counters == {
        "moehost_prompt_tokens_total": 1600,
        "moehost_prompt_seconds_total": 0.5,
        "moehost_predicted_tokens_total": 48,
        "moehost_predicted_seconds_total": 2,
        **(own if server.dialect == "llama.cpp" else {}),
    }
    usage = {"moehost_kv_cache_usage_ratio": 0.25} if server.dialect == "ik" else {}
    assert told.gauges == {"moehost_requests_processing": 1, "moehost_requests_deferred": 2, **usage}


def test_rates_are_dropped_since_a_question_empties_them(server: BusyServer) -> None:
    first, second = (scrape.figures(HOST, server.port, KEY, 5) for _ in range(2))
    assert first == second
    assert not any("tokens_seconds" in name for name in {**first.counters, **first.gauges})


@pytest.mark.parametrize(("key", "problem"), [("", "HTTP status 401"), ("wrong", "HTTP status 401")])
def test_it_wants_its_key(server: BusyServer, key: str, problem: str) -> None:
    assert scrape.figures(HOST, server.port, key, 5) == scrape.Told(problem=problem)


def test_a_server_without_metrics_is_named(server: BusyServer) -> None:
    server.has_metrics = False
    assert scrape.figures(HOST, server.port, KEY, 5).problem == "HTTP status 501"
    with pytest.raises(ValueError, match="--metrics"):
        server_figures.counters('{"error": "no metrics"}')


def test_a_busy_server_tells_late_and_is_ready(server: BusyServer) -> None:
    server.busy_s = 1.0
    assert scrape.is_ready(HOST, server.port, 0.2)
    assert server.questions == ["/health", "/v1/models"]
    assert scrape.figures(HOST, server.port, KEY, 0.2).problem == "timed out"
    assert scrape.figures(HOST, server.port, KEY, 5).counters


@pytest.mark.parametrize("says_503", [False, True])
def test_a_server_that_loads_is_not_ready(server: BusyServer, says_503: bool) -> None:
    server.is_loading, server.says_503 = True, says_503
    started = time.monotonic()
    assert not scrape.is_ready(HOST, server.port, 0.2)
    assert time.monotonic() - started < 2


def test_nobody_is_not_ready() -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    assert not scrape.is_ready(HOST, port, 1)
    assert "refused" in scrape.figures(HOST, port, KEY, 1).problem
