"""A run over many nodes, batch after batch: told what has ended, it says what may begin.

A batch is drained as a whole. Then each of its nodes goes its way by itself: deploy, gate, ready; so a slow one keeps
nobody but the next batch waiting. Nothing here is remembered from run to run: a run that was killed is mended by the
next one, which takes every node through all steps again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal, Protocol

Kind = Literal["drain", "deploy", "gate", "ready"]
STEPS: tuple[Kind, ...] = ("drain", "deploy", "gate", "ready")
PERCENT = re.compile(r"(\d{1,3})%")


class RollingError(ValueError):
    """A wish that can't be met; one line."""


class RouterError(RuntimeError):
    """A router did not do as it was told; one line that says why."""


class Router(Protocol):
    """Who sends requests to nodes. Nodes are named as in the inventory; saying a thing twice does no harm."""

    def drain(self, nodes: Sequence[str]) -> None:
        """Send these nodes no new requests; returns when none is under way there any more. Raises RouterError."""

    def ready(self, nodes: Sequence[str]) -> None:
        """Send these nodes requests again. Raises RouterError."""

    def drained(self) -> Collection[str]:
        """The nodes that get no new requests now. Raises RouterError."""


class NoRouter:
    """Nobody sends requests to the nodes but their own users: nothing is drained."""

    def drain(self, nodes: Sequence[str]) -> None:
        """Nothing."""

    def ready(self, nodes: Sequence[str]) -> None:
        """Nothing."""

    def drained(self) -> Collection[str]:
        """None."""
        return ()


@dataclass(frozen=True)
class Step:
    """Something that begins now: `drain` with all nodes of a batch, the others with one."""

    kind: Kind
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """Where a node's way ended, and why: a step, or `ask` and `settings` where there was none."""

    step: Kind | Literal["ask", "settings"]
    reason: str


class Rollout:
    """Where a run over nodes is.

    `failures`: the nodes that failed; `passed`: those that went all their way, in this order.

    + nodes: in the order in which they are taken
    + batch: how many of them may be away at the same time
    + max_failures: no batch begins once so many nodes have failed; None for no limit
    + steps: what each node goes through
    """

    def __init__(
        self, nodes: Sequence[str], batch: int, max_failures: int | None = None, steps: Sequence[Kind] = STEPS
    ) -> None:
        self._waiting = [tuple(nodes[at : at + batch]) for at in range(0, len(nodes), batch)]
        self._max_failures, self._steps = max_failures, tuple(steps)
        self._ready: list[Step] = []
        self._under_way: set[Step] = set()
        self.failures: dict[str, Failure] = {}
        self.passed: list[str] = []

    def next(self) -> list[Step]:
        """The steps that begin now; none while others must end first, or when it is over."""
        if not self._ready and not self._under_way and self._waiting and not self.stopped:
            self._ready = list(self._first(self._waiting.pop(0)))
        begun, self._ready = self._ready, []
        self._under_way.update(begun)
        return begun

    def _first(self, nodes: tuple[str, ...]) -> Iterator[Step]:
        kind = self._steps[0]
        return iter([Step(kind, nodes)] if kind == "drain" else [Step(kind, (node,)) for node in nodes])

    def ended(self, step: Step, failed: Mapping[str, str]) -> None:
        """Hear that a step has ended, and why for which of its nodes it failed; the others go on."""
        self._under_way.remove(step)
        self.failures |= {node: Failure(step.kind, failed[node]) for node in step.nodes if node in failed}
        for node in step.nodes:
            if node in failed:
                continue
            if step.kind == self._steps[-1]:
                self.passed.append(node)
            else:
                self._ready.append(Step(self._steps[self._steps.index(step.kind) + 1], (node,)))

    def interrupt(self, reason: str) -> None:
        """End it here: what is under way or would come next has failed, no batch begins any more."""
        for step in (*self._under_way, *self._ready):
            self.failures |= {node: Failure(step.kind, reason) for node in step.nodes}
        self._under_way, self._ready, self._max_failures = set(), [], 0

    @property
    def over(self) -> bool:
        """Whether nothing begins any more, and nothing is under way."""
        return not (self._ready or self._under_way or (self._waiting and not self.stopped))

    @property
    def stopped(self) -> bool:
        """Whether so many nodes have failed that no batch begins any more."""
        return self._max_failures is not None and len(self.failures) >= self._max_failures

    @property
    def untouched(self) -> list[str]:
        """The nodes that no step has begun with."""
        return [node for batch in self._waiting for node in batch]


def batch_size(wish: str, nodes: int) -> int:
    """How many of so many nodes a batch has, from `4` or `25%`; part of a node is none, and at least one is taken.

    Raises RollingError.
    """
    percent = PERCENT.fullmatch(wish)
    if percent and 1 <= int(percent[1]) <= 100:
        return max(1, nodes * int(percent[1]) // 100)
    if wish.isascii() and wish.isdecimal() and int(wish) > 0:
        return int(wish)
    raise RollingError(f"{wish!r} is no size of a batch; write a number of nodes, 4, or a part of them, 25%")


def chosen(groups: Mapping[str, Collection[str]], limits: Sequence[str]) -> list[str]:
    """The hosts that are named by groups, hosts or globs, as pyinfra takes them, in the inventory's order.

    + groups: the groups of each host, hosts in their order
    + limits: what names some of them; without any it is all of them

    Raises RollingError for a limit that names none.
    """
    wanted: set[str] = set()
    for limit in limits:
        of_group = {host for host, names in groups.items() if limit in names}
        found = of_group or {host for host in groups if fnmatch(host, limit)}
        if not found:
            names = dict.fromkeys(name for each in groups.values() for name in each)
            there = f"groups {', '.join(names)}; hosts {', '.join(groups)}"
            raise RollingError(f"{limit!r} names no host; there are {there}")
        wanted |= found
    return [host for host in groups if host in wanted or not limits]
