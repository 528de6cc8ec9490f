"""The router as HAProxy understands it: a real one, on this computer, before stub gateways.

HAPROXY names another program than the one that `scripts/haproxy` unpacks.
"""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from moehost import balancer as module
from tests.fixtures import routed
from tests.fixtures.routed import NODE_KEY, Answer, LocalRouter, StubNode
from tests.fixtures.waiting import until


@pytest.fixture
def balancer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that talks to HAProxy, with the test's folders."""
    for name in ("folder", "files", "drains", "sockets"):
        monkeypatch.setenv(f"ROUTER_{name.upper()}", str(tmp_path / "router" / name))
    (tmp_path / "router").mkdir()
    yield importlib.reload(module)
    monkeypatch.undo()
    importlib.reload(module)


@pytest.fixture
def made(tmp_path: Path, balancer: ModuleType) -> Iterator[Callable[..., LocalRouter]]:
    """Makes a router before so many nodes; all of it is gone afterwards."""
    there: list[Any] = []

    def make(nodes: int = 2, start: bool = True, **wish: Any) -> LocalRouter:
        stubs = [StubNode(f"n{index}", tmp_path / f"n{index}") for index in range(1, nodes + 1)]
        there.extend(stubs)
        found = LocalRouter(tmp_path / "router", balancer, stubs, **wish)
        there.append(found)
        if start:
            found.start(ready=nodes)
        return found

    yield make
    for each in reversed(there):
        each.end()


def beside(*asked: Callable[[], Answer]) -> list[Answer]:
    """The answers to requests that are under way at the same time."""
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda one=one: answers.append(one())) for one in asked]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert len(answers) == len(asked)
    return answers


@contextmanager
def meanwhile(*asked: Callable[[], Answer]) -> Iterator[list[Answer]]:
    """Requests that are under way while the block runs; their answers, all of which are there after it."""
    answers: list[Answer] = []
    running = threading.Thread(target=lambda: answers.extend(beside(*asked)))
    running.start()
    try:
        yield answers
    finally:
        running.join()


def under_way(router: LocalRouter, count: int) -> None:
    """Wait until so many requests are at the nodes or wait for one."""

    def now() -> int:
        rows = router.balancer.rows()
        at_nodes = sum(int(row["scur"]) for row in rows if row["svname"] != "BACKEND")
        return at_nodes + sum(int(row["qcur"]) for row in rows if row["svname"] == "BACKEND")

    until(lambda: now() == count, 10)


class TestConfiguration:
    def test_haproxy_finds_it_good(self, made: Callable[..., LocalRouter]) -> None:
        checked = made(start=False).check()
        assert checked.returncode == 0, checked.stderr
        assert "ALERT" not in checked.stderr

    def test_nobody_gets_anything_before_it_was_checked(self, made: Callable[..., LocalRouter]) -> None:
        router = made(start=False)
        router.stubs[0].warm = False
        router.start(ready=1)
        assert {row["svname"]: row["status"][:4] for row in router.servers()} == {"n1": "DOWN", "n2": "UP"}
        assert router.stubs[0].checks[0] == f"/tiny/ready Bearer {NODE_KEY}"
        assert {router.chat(str(n)).node for n in range(4)} == {"n2"}


class TestWhoMayAskWhat:
    def test_keys_paths_and_models(self, made: Callable[..., LocalRouter]) -> None:
        router = made()
        good = router.chat("hi")
        assert (good.status, good.is_whole) == (200, True)
        path, key, body = next(each for stub in router.stubs for each in stub.asked)
        assert (path, key, body["model"]) == ("/tiny/v1/chat/completions", f"Bearer {NODE_KEY}", "tiny")
        assert router.ask("/tiny/v1/chat/completions", {"model": "other"}).status == 200
        assert router.ask("/v1/chat/completions", {"model": "tiny"}, None, X_Api_Key=routed.KEYS["bob"]).status == 200
        # Without a name there is one only.
        assert router.ask("/v1/chat/completions?key=x", {}).status == 200
        assert json.loads(router.ask("/v1/models").body)["data"][0]["id"] == "tiny"
        assert router.ask("/health", user=None).body == '{"status":"ok"}'

    @pytest.mark.parametrize("user", [None, "wrong", "alice ", routed.KEYS["alice"][:-1], NODE_KEY])
    def test_no_key_no_answer(self, made: Callable[..., LocalRouter], user: str | None) -> None:
        router = made(1)
        found = router.chat("hi", user)
        assert (found.status, found.error["code"]) == (401, "invalid_api_key")
        assert router.ask("/v1/models", user=user).status == 401
        assert router.stubs[0].asked == []

    def test_two_keys_are_none(self, made: Callable[..., LocalRouter]) -> None:
        assert made(1).ask("/v1/models", user="alice", X_Api_Key=routed.KEYS["bob"]).status == 401

    def test_a_model_that_is_not_there(self, made: Callable[..., LocalRouter]) -> None:
        found = made(1).ask("/v1/chat/completions", {"model": "gpt"})
        assert (found.status, found.error["code"]) == (404, "model_not_found")
        assert found.error["message"] == "there is no such model; there are: tiny"
        assert found.headers["content-type"] == "application/json"

    @pytest.mark.parametrize(
        "path", ["/slots", "/v1//chat/completions", "/tiny/slots", "/tiny/tiny/v1/embeddings", "/"]
    )
    def test_what_is_not_named_is_not_there(self, made: Callable[..., LocalRouter], path: str) -> None:
        router = made(1)
        assert (router.ask(path).status, router.ask(path, {"model": "tiny"}).status) == (404, 404)
        assert router.stubs[0].asked == []

    def test_a_name_behind_a_long_prompt_and_one_that_is_too_long(self, made: Callable[..., LocalRouter]) -> None:
        router = made(1, max_body_mib=2)
        assert router.chat("x" * 2_000_000).status == 200
        assert len(router.stubs[0].asked[0][2]["messages"][0]["content"]) == 2_000_000
        # It is told before it sends anything.
        large = router.ask("/v1/chat/completions", "{", Content_Length="2200000")
        assert (large.status, large.error["code"]) == (413, "request_too_large")


class TestLimits:
    def test_too_many_in_a_minute(self, made: Callable[..., LocalRouter]) -> None:
        router = made(1, requests_per_minute=3)
        assert [router.chat(str(n)).status for n in range(4)] == [200, 200, 200, 429]
        refused = router.chat()
        assert refused.error["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) > 0
        # Another one's key has minutes of its own, and a list costs nothing.
        assert router.chat("hi", "bob").status == 200
        assert router.ask("/v1/models").status == 200

    def test_too_many_at_once(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2, concurrent_requests=2)
        long = [lambda n=n: router.chat(f"long {n}", n=15, pause_s=0.1) for n in range(2)]
        with meanwhile(*long) as answers:
            under_way(router, 2)
            refused = router.chat("one more")
            assert (refused.status, refused.error["code"]) == (429, "too_many_at_once")
            assert int(refused.headers["retry-after"]) > 0
            assert router.chat("hi", "bob").status == 200
        assert all(each.is_whole for each in answers)
        assert router.chat("again").status == 200

    def test_who_waits_gets_the_first_slot_that_is_free(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        answers = beside(*(lambda n=n: router.chat(f"long {n}", n=4, pause_s=0.1) for n in range(8)))
        assert all(each.is_whole for each in answers)
        assert sorted(len(stub.asked) for stub in router.stubs) == [4, 4]

    def test_who_waits_too_long_is_told(self, made: Callable[..., LocalRouter]) -> None:
        router = made(1, queue_s=1)
        asked = [lambda n=n: router.chat(f"long {n}", n=30, pause_s=0.1) for n in range(3)]
        answers = beside(*asked)
        assert sorted(each.status for each in answers) == [200, 200, 503]
        late = next(each for each in answers if each.status == 503)
        assert late.error["code"] == "no_node"
        assert late.headers["retry-after"] == "10"
        assert len(router.stubs[0].asked) == 2


class TestConversations:
    def turn(self, router: LocalRouter, text: str, count: int, **more: Any) -> str:
        turns = [{"role": role, "content": f"{text} {n}"} for n in range(count) for role in ("assistant", "user")]
        return router.chat(text, turns=turns, **more).node

    def test_one_stays_and_many_spread(self, made: Callable[..., LocalRouter]) -> None:
        router = made(3)
        first = {text: self.turn(router, text, 0) for text in map(str, range(9))}
        assert sorted(list(first.values()).count(name) for name in ("n1", "n2", "n3")) == [3, 3, 3]
        for count in (1, 2):
            assert {text: self.turn(router, text, count) for text in first} == first

    def test_the_systems_message_and_the_first_question_together(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)

        def ask(question: str, *later: dict[str, str]) -> str:
            messages = [
                {"role": "system", "content": "the same for all"},
                {"role": "user", "content": question},
                *later,
            ]
            return router.ask("/v1/chat/completions", {"messages": messages, "model": "tiny"}).node

        first = {text: ask(text) for text in "abcdef"}
        assert set(first.values()) == {"n1", "n2"}
        answer = {"role": "assistant", "content": "x"}
        assert {text: ask(text, answer, {"role": "user", "content": "more"}) for text in first} == first

    def test_of_two_users_are_two(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        nodes = [(router.chat(text, "alice").node, router.chat(text, "bob").node) for text in "abcd"]
        assert any(a != b for a, b in nodes)

    @pytest.mark.parametrize("named", [{"headers": {"X_Session_Id": "s"}}, {"body": {"prompt_cache_key": "s"}}])
    def test_one_that_has_a_name(self, made: Callable[..., LocalRouter], named: dict[str, dict[str, str]]) -> None:
        router = made(3)

        def ask(text: str) -> str:
            body = {"prompt": text, **named.get("body", {}), "model": "tiny"}
            return router.ask("/v1/completions", body, **named.get("headers", {})).node

        assert len({ask(text) for text in "abcdef"}) == 1

    def test_it_outlives_a_reload_and_moves_where_its_node_is_away(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        first = {text: self.turn(router, text, 0) for text in "abcd"}
        # A process that is younger than ten seconds still looks for one before it, and hands nothing over.
        time.sleep(11)
        router.reload()
        until(lambda: "used:4" in router.balancer.ask("show table router/conversations"), 5)
        assert {text: self.turn(router, text, 1) for text in first} == first
        router.stubs[0].warm = False
        router.wait(ready=1)
        assert {self.turn(router, text, 2) for text in first} == {"n2"}
        # And stays there: that is where its cache is now.
        router.stubs[0].warm = True
        router.wait(ready=2)
        assert {self.turn(router, text, 3) for text in first} == {"n2"}

    def test_where_many_wait_it_goes_elsewhere(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        home = router.chat("a").node
        asked = [lambda n=n: router.chat("a", n=8, pause_s=0.1, turns=[{"role": "user", "content": str(n)}]) for n in
                 range(12)]  # fmt: skip
        answers = beside(*asked)
        assert all(each.is_whole for each in answers)
        assert 2 <= [each.node for each in answers].count(home) < 12


class TestAway:
    def test_what_no_engine_has_begun_goes_elsewhere(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        router.stubs[0].away = True
        answers = [router.chat(str(n)) for n in range(6)]
        assert {(each.status, each.node) for each in answers} == {(200, "n2")}
        assert router.stubs[0].asked != []

    def test_a_node_that_is_gone(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        router.stubs[0].end()
        assert {(each.status, each.node) for each in (router.chat(str(n)) for n in range(6))} == {(200, "n2")}

    def test_nothing_is_sent_twice_that_may_have_begun(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        for stub in router.stubs:
            stub.breaks = True
        found = router.chat("once")
        assert (found.status, found.error["code"]) == (502, "no_answer")
        assert sum(len(stub.asked) for stub in router.stubs) == 1

    def test_no_node_at_all(self, made: Callable[..., LocalRouter]) -> None:
        router = made(1)
        router.stubs[0].warm = False
        router.wait(ready=0)
        found = router.chat()
        assert (found.status, found.error["code"]) == (503, "no_node")
        assert router.ask("/health", user=None).status == 503


class TestCrowd:
    def test_nobody_is_refused_where_many_wait(self, made: Callable[..., LocalRouter]) -> None:
        """Requests that come at the same time and go for the same slots."""
        router = made(3, concurrent_requests=100, requests_per_minute=10_000)
        asked = [lambda n=n: router.chat(str(n), n=1, pause_s=0.02) for n in range(40)]
        answers = [each for _ in range(5) for each in beside(*asked)]
        assert {(each.status, each.is_whole) for each in answers} == {(200, True)}


class TestDrain:
    def test_it_waits_gives_nothing_and_ends(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        with meanwhile(*(lambda n=n: router.chat(f"long {n}", n=20, pause_s=0.1) for n in range(2))) as answers:
            under_way(router, 2)
            assert router.balancer.drain(["n1"], 60, wait_s=0.2) == "n1: 1 request(s)"
            before = len(router.stubs[0].asked)
            assert {router.chat(str(n)).node for n in range(6)} == {"n2"}
            assert router.balancer.drain(["n1"], 60, wait_s=20) == ""
        assert all(each.is_whole for each in answers) and {each.node for each in answers} == {"n1", "n2"}
        assert len(router.stubs[0].asked) == before
        assert router.balancer.drain(["n1"], 60, wait_s=20) == ""
        assert router.balancer.ready(["n1"], wait_s=10) == ""
        assert {router.chat(f"new {n}").node for n in range(6)} == {"n1", "n2"}

    def test_it_outlives_reloads_and_those_at_work_in_the_old_process_count(
        self, made: Callable[..., LocalRouter]
    ) -> None:
        router = made(2)
        with meanwhile(*(lambda n=n: router.chat(f"long {n}", n=25, pause_s=0.1) for n in range(2))) as answers:
            under_way(router, 2)
            router.balancer.drain(["n1"], 60, wait_s=0)
            router.reload()
            assert {row["svname"]: row["status"] for row in router.servers()} == {"n1": "MAINT", "n2": "UP"}
            assert router.balancer.drain(["n1"], 60, wait_s=0.2) == "n1: 1 request(s)"
            assert {router.chat(str(n)).node for n in range(4)} == {"n2"}
            assert router.balancer.drain(["n1"], 60, wait_s=20) == ""
        assert all(each.is_whole for each in answers)

    def test_it_is_over_when_its_time_is(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        before_s = time.time()
        assert router.balancer.drain(["n1"], 4, wait_s=3) == ""
        router.balancer.settle()
        status = router.balancer.status()
        until_s = status["nodes"]["n1"]["drained_until"]
        assert 4 <= until_s - before_s < 5
        assert status["models"]["tiny"] == {"waiting": 0, "nodes_ready": 1}
        time.sleep(max(0.0, until_s - time.time()) + 0.01)
        router.balancer.settle()
        router.wait(ready=2)
        assert router.balancer.status()["nodes"]["n1"]["drained_until"] is None

    def test_a_node_that_is_not_warm_gets_nothing_when_it_comes_back(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        router.balancer.drain(["n1"], 60, wait_s=5)
        router.stubs[0].warm = False
        assert router.balancer.ready(["n1"], wait_s=0.5) == "n1"
        assert {router.chat(str(n)).node for n in range(4)} == {"n2"}

    def test_a_name_that_nobody_has(self, made: Callable[..., LocalRouter], balancer: ModuleType) -> None:
        made(1)
        with pytest.raises(balancer.NoAnswerError, match="the router does not know n9"):
            balancer.drain(["n9"], 60, wait_s=0)

    def test_what_waits_for_a_node_goes_to_another(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        assert router.chat("a").node
        home = router.chat("a").node
        # The home of this conversation is busy, and its next turns wait for it.
        asked = [lambda n=n: router.chat("a", n=12, pause_s=0.1, turns=[{"role": "user", "content": str(n)}]) for n in
                 range(4)]  # fmt: skip
        with meanwhile(*asked) as answers:
            until(lambda: sum(int(row["qcur"]) for row in router.servers()) >= 2, 10)
            router.balancer.drain([home], 60, wait_s=20)
        assert all(each.is_whole for each in answers)
        assert sorted(each.node for each in answers).count(home) == 2


class TestReload:
    def test_keys_come_and_go_and_no_stream_breaks(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        asked = [lambda n=n: router.chat(f"long {n}", "bob", n=20, pause_s=0.1) for n in range(4)]
        with meanwhile(*asked) as answers:
            under_way(router, 4)
            keys = router.folder / "folder/user-keys"
            keys.write_text(
                keys.read_text().replace("bob", "carol").replace(routed.KEYS["bob"], "key-of-carol-0123456789")
            )
            assert router.balancer.compare() == "old"
            router.reload()
            assert router.balancer.compare() == "current"
            assert router.ask("/v1/models", user="bob").status == 401
            assert router.ask("/v1/models", user="key-of-carol-0123456789").status == 200
        assert all(each.is_whole for each in answers)

    def test_no_connection_is_refused_meanwhile(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        failed: list[str] = []
        stop = threading.Event()

        def hammer() -> None:
            while not stop.is_set():
                try:
                    if (status := router.ask("/v1/models").status) != 200:
                        failed.append(str(status))
                except OSError as error:
                    failed.append(str(error))

        threads = [threading.Thread(target=hammer) for _ in range(4)]
        for each in threads:
            each.start()
        for _ in range(4):
            with (router.folder / "folder/user-keys").open("a") as keys:
                keys.write(f"u{time.time_ns()} another-key-{time.time_ns()} -\n")
            router.reload()
        stop.set()
        for each in threads:
            each.join()
        assert failed == []

    def test_a_node_that_was_down_stays_down(self, made: Callable[..., LocalRouter]) -> None:
        router = made(2)
        router.stubs[0].warm = False
        router.wait(ready=1)
        router.reload()
        assert {row["svname"]: row["status"][:4] for row in router.servers()} == {"n1": "DOWN", "n2": "UP"}
