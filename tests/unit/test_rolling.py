"""A run over many nodes as a function of what its steps come to: order, limits, failures at each step, kills."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moehost.rolling import STEPS, Failure, Kind, NoRouter, RollingError, Rollout, Step, batch_size, chosen

NODES = ["a", "b", "c", "d", "e"]
# Why which node fails, at which step.
Faults = dict[tuple[str, Kind], str]


class World:
    """Nodes that serve or don't, a router that has drained some, and how many are away at the most."""

    def __init__(self, nodes: list[str], faults: Faults | None = None) -> None:
        self.deployed: set[str] = set()
        self.drained: set[str] = set()
        self.away = 0
        self.faults = faults or {}
        self.done: list[tuple[Kind, tuple[str, ...]]] = []

    def act(self, step: Step) -> dict[str, str]:
        self.done.append((step.kind, step.nodes))
        failed = {node: self.faults[node, step.kind] for node in step.nodes if (node, step.kind) in self.faults}
        good = [node for node in step.nodes if node not in failed]
        if step.kind == "drain":
            self.drained.update(good)
        elif step.kind == "deploy":
            assert self.drained.issuperset(step.nodes), "deployed while requests were under way"
            self.deployed.update(good)
        elif step.kind == "ready":
            assert self.deployed.issuperset(step.nodes)
            self.drained.difference_update(good)
        self.away = max(self.away, len(self.drained))
        return failed


def steps(rollout: Rollout, world: World, last_first: bool = False) -> Iterator[Step]:
    """All steps, one after the other as they end; each is yielded before it is done."""
    under_way: list[Step] = []
    while not rollout.over:
        under_way += rollout.next()
        step = under_way.pop(-1 if last_first else 0)
        yield step
        rollout.ended(step, world.act(step))
    assert rollout.next() == []
    assert not under_way


def run(rollout: Rollout, world: World, last_first: bool = False) -> World:
    for _ in steps(rollout, world, last_first):
        pass
    return world


def test_a_batch_is_drained_whole_and_its_nodes_go_their_way():
    rollout, world = Rollout(NODES[:3], 2), World(NODES)
    assert run(rollout, world).done == [
        ("drain", ("a", "b")),
        ("deploy", ("a",)),
        ("deploy", ("b",)),
        ("gate", ("a",)),
        ("gate", ("b",)),
        ("ready", ("a",)),
        ("ready", ("b",)),
        ("drain", ("c",)),
        ("deploy", ("c",)),
        ("gate", ("c",)),
        ("ready", ("c",)),
    ]
    assert (rollout.passed, rollout.failures, rollout.untouched) == (["a", "b", "c"], {}, [])


def test_a_slow_node_keeps_nobody_of_its_batch():
    rollout = Rollout(["slow", "quick"], 2)
    (drain,) = rollout.next()
    rollout.ended(drain, {})
    slow, quick = rollout.next()
    for kind in ("deploy", "gate", "ready"):
        assert quick == Step(kind, ("quick",))
        rollout.ended(quick, {})
        quick = next(iter(rollout.next()), quick)
    assert (rollout.passed, rollout.over) == (["quick"], False)
    rollout.ended(slow, {"slow": "no space"})
    assert (rollout.over, rollout.failures) == (True, {"slow": Failure("deploy", "no space")})


@pytest.mark.parametrize("kind", STEPS)
def test_a_failure_at_any_step_ends_that_nodes_way_only(kind: Kind):
    rollout, world = Rollout(NODES, 5), World(NODES, {("b", kind): "no"})
    run(rollout, world)
    assert rollout.failures == {"b": Failure(kind, "no")}
    assert rollout.passed == ["a", "c", "d", "e"]
    steps_of_b = [each for each, nodes in world.done if "b" in nodes]
    assert steps_of_b == list(STEPS[: STEPS.index(kind) + 1])
    # What failed after it was drained gets no requests, until a later run has been through.
    assert world.drained == (set() if kind == "drain" else {"b"})


@pytest.mark.parametrize("kind", STEPS)
def test_the_next_batch_does_not_begin_after_a_failure(kind: Kind):
    rollout, world = Rollout(NODES, 2, max_failures=1), World(NODES, {("b", kind): "no"})
    run(rollout, world)
    assert (rollout.passed, rollout.untouched) == (["a"], ["c", "d", "e"])
    assert rollout.stopped
    assert not {node for _, nodes in world.done for node in nodes} & {"c", "d", "e"}


def test_so_many_failures_are_borne():
    faults: Faults = {("a", "deploy"): "1", ("c", "gate"): "2", ("d", "deploy"): "3"}
    rollout = Rollout(NODES, 1, max_failures=2)
    run(rollout, World(NODES, faults))
    assert (rollout.passed, list(rollout.failures), rollout.untouched) == (["b"], ["a", "c"], ["d", "e"])
    rollout = Rollout(NODES, 1, max_failures=None)
    run(rollout, World(NODES, faults))
    assert (rollout.passed, list(rollout.failures), rollout.untouched) == (["b", "e"], ["a", "c", "d"], [])


def test_more_failures_than_borne_in_one_batch_are_all_told():
    rollout = Rollout(NODES, 3, max_failures=1)
    run(rollout, World(NODES, {("a", "deploy"): "1", ("c", "deploy"): "2"}))
    assert (list(rollout.failures), rollout.untouched) == (["a", "c"], ["d", "e"])


def test_a_dry_run_drains_nothing():
    rollout, world = Rollout(NODES, 2, steps=("deploy",)), World(NODES)
    world.drained.update(NODES)  # so that it may deploy
    run(rollout, world)
    assert [kind for kind, _ in world.done] == ["deploy"] * 5
    assert rollout.passed == NODES


def test_an_interrupted_run_says_how_far_it_was():
    rollout = Rollout(NODES, 2, max_failures=None)
    (drain,) = rollout.next()
    rollout.ended(drain, {})
    first, _ = rollout.next()
    rollout.ended(first, {})
    rollout.interrupt("killed")
    # One was at its gate next, the other in its deploy.
    assert rollout.failures == {"a": Failure("gate", "killed"), "b": Failure("deploy", "killed")}
    assert (rollout.over, rollout.next(), rollout.untouched) == (True, [], ["c", "d", "e"])


@given(
    nodes=st.integers(1, 9),
    batch=st.integers(1, 9),
    killed_at=st.integers(0, 40),
    last_first=st.booleans(),
    faults=st.dictionaries(
        st.tuples(st.sampled_from("012345678"), st.sampled_from(STEPS)), st.just("no"), max_size=4
    ),
)
def test_whatever_a_kill_leaves_the_next_run_mends(
    nodes: int, batch: int, killed_at: int, last_first: bool, faults: Faults
) -> None:
    names = [str(each) for each in range(nodes)]
    world = World(names, faults)
    for number, _ in enumerate(steps(Rollout(names, batch, max_failures=1), world, last_first)):
        if number == killed_at:
            break
    left = set(world.drained)
    # The fault is mended, and it goes over them again.
    world.faults, world.away = {}, 0
    again = Rollout(names, batch, max_failures=1)
    run(again, world, last_first)
    assert sorted(again.passed) == names
    assert (world.drained, world.deployed) == (set(), set(names))
    # Beside those that the killed run has left, no more are away at once than were wished.
    assert world.away <= batch + len(left)


@given(st.integers(1, 200), st.integers(1, 100))
def test_a_part_of_the_nodes_is_never_more_than_was_asked_for(nodes: int, percent: int) -> None:
    size = batch_size(f"{percent}%", nodes)
    assert 1 <= size <= nodes
    assert size == 1 or size * 100 <= nodes * percent


def test_sizes_of_batches():
    assert [batch_size(wish, 10) for wish in ("1", "4", "25%", "5%", "100%")] == [1, 4, 2, 1, 10]


@pytest.mark.parametrize("wish", ["0", "0%", "101%", "-1", "half", "", "2.5", "٣"])
def test_what_is_no_size(wish: str) -> None:
    with pytest.raises(RollingError, match="is no size of a batch; write a number of nodes, 4, or a part of them"):
        batch_size(wish, 10)


GROUPS = {
    "epyc1.home": ("gpu_nodes", "hosts"),
    "spare": ("hosts",),
    "epyc2.home": ("gpu_nodes", "hosts"),
    "spare2": ("rest",),
}


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        ((), list(GROUPS)),
        (("gpu_nodes",), ["epyc1.home", "epyc2.home"]),
        (("spare*", "epyc2.home"), ["spare", "epyc2.home", "spare2"]),
        (("rest", "rest", "spare2"), ["spare2"]),
    ],
)
def test_limits_are_groups_hosts_and_globs(limits: tuple[str, ...], names: list[str]) -> None:
    assert chosen(GROUPS, limits) == names


def test_a_limit_that_names_none_is_refused():
    with pytest.raises(RollingError) as refusal:
        chosen(GROUPS, ("gpu_nodes", "epyc3*"))
    assert str(refusal.value) == (
        "'epyc3*' names no host; there are groups gpu_nodes, hosts, rest; hosts epyc1.home, spare, epyc2.home, spare2"
    )


def test_without_a_router_nothing_is_drained():
    router = NoRouter()
    router.drain(NODES)
    assert not router.drained()
    router.ready(NODES)
