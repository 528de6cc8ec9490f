"""How a host is tuned: what was before is recorded, files for the next boot, values at once, and both looked at."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from pyinfra import host, logger
from pyinfra.api import QuoteString, StringCommand, operation

from moehost.hardware import HardwareError
from moehost.huge_page_pools import PoolError, Pools, lacking, pools
from moehost.settings import Node
from moehost.topology import Topology, parse
from moehost.tuning import Tuning, tuning
from moehost.tuning_before import PATH as BEFORE
from moehost.tuning_before import Before, to_write
from roles.facts import FileStates
from roles.host_tuning import facts
from roles.models.facts import StoredModel
from roles.operations import file_state, files, rebooted, refuse, render

WRITE = 'while read -r path value; do echo "$value" >"$path" || true; done'


class NotYet(Exception):
    """A model is not in the store: only the plan of a deploy comes here."""


@dataclass(frozen=True)
class State:
    """The host now, what was before, and what it should be."""

    host: Topology
    before: Before
    goal: Tuning
    pools: Pools | None
    files: dict[str, list[str]]
    before_text: str

    @property
    def pending(self) -> list[str]:
        """What only a reboot brings about."""
        lacks = [each for each in self.goal.words if each not in self.host.words]
        stale = [each for each in self.before.stale_words(self.goal) if each in self.host.words]
        return [
            *([f"the kernel's command line lacks {' '.join(lacks)}"] if lacks else []),
            *([f"the kernel's command line still has {' '.join(stale)}"] if stale else []),
        ]


@operation()
def tuned(node: Node) -> Iterator[Any]:
    """
    Have the host tuned, and what is tuned no more as it was before; reboot for it where allowed.

    + node: settings of the node
    """
    try:
        now = _state(node)
    except (PoolError, NotYet) as reason:
        yield refuse(str(reason)) if isinstance(reason, PoolError) else StringCommand("test -s", str(reason))
        return
    except HardwareError as error:
        logger.warning("[%s] not tuned: %s", host.name, error)
        host.noop(f"not tuned: {error}")
        return
    if now.host.container:
        host.noop(f"a container ({now.host.container}): the kernel is its host's, nothing is tuned")
        return
    if now.goal.words and not now.host.has_grub and now.pending:
        yield refuse(
            f"tuning: {now.pending[0]}, and there is no GRUB (update-grub, /etc/default/grub) to tell; add it to "
            "your boot loader's configuration and reboot"
        )
        return
    now = yield from _applied(now, node)
    if now.pending and node.allow_reboot:
        yield from rebooted("; ".join(now.pending))
        now = yield from _applied(_state(node), node)
        if now.pending:
            yield refuse(
                f"tuning: after a reboot {'; '.join(now.pending)}; look which entry boots (`grep -m1 linux "
                "/boot/grub/grub.cfg` on the node has it right)"
            )
            return
    yield from _checked(now)


def _state(node: Node) -> State:
    """Ask the host. Raises HardwareError, PoolError and NotYet."""
    texts = host.get_fact(facts.Topology)
    machine = parse(texts, node.models_dir)
    before = Before.parse(texts["before"])
    wanted = _pools(node, machine) if node.tuning.huge_pages == "static" and not machine.container else None
    goal = tuning(node.tuning, machine, before.values, wanted)
    states = FileStates().process(texts["files"].splitlines())
    return State(machine, before, goal, wanted, states, texts["before"])


def _pools(node: Node, machine: Topology) -> Pools | None:
    """Static huge pages for each service's own copy of its model."""
    sizes: list[int] = []
    for service in node.services:
        folder = f"{node.models_dir}/{service.model.name}"
        manifest = host.get_fact(StoredModel, folder=folder)
        if manifest is None:
            raise NotYet(f"{folder}/manifest.json")
        sizes += [file.size_bytes for file in manifest.files]
    return pools(sizes, node.tuning.huge_page_size, machine) if sizes else None


def _applied(now: State, node: Node) -> Generator[Any, None, State]:
    """Have files and values as they should be; gives the state after that."""
    for step in (_recorded, _written, _set, _told_grub, _forgotten):
        changed = False
        for command in step(now):
            changed = True
            yield command
        if changed:
            now = _state(node)
    return now


def _recorded(now: State) -> Iterator[Any]:
    """What is about to change is recorded first."""
    yield from _kept(now.before.recorded(now.goal, now.host), now)


def _kept(before: Before, now: State) -> Iterator[Any]:
    if before != now.before:
        yield from files._inner(contents={BEFORE: before.text}) if before.text else ["rm -f " + BEFORE]


def _written(now: State) -> Iterator[Any]:
    """The next boot reads it from files; of an area that is off there are none."""
    wanted = contents(now.goal)
    if any(now.files.get(path) != file_state(text) for path, text in wanted.items()):
        yield from files._inner(contents=wanted)
    if gone := [path for path in now.files if path not in (*wanted, BEFORE)]:
        yield StringCommand("rm", *(QuoteString(path) for path in gone))


def _set(now: State) -> Iterator[Any]:
    """Values count at once; what the kernel refuses is said at the end."""
    values = {each.path: each.value for each in now.goal.drifted(now.host)}
    values |= to_write(now.before.undone(now.goal), now.host)
    if values:
        yield StringCommand(WRITE, _stdin="".join(f"{path} {value}\n" for path, value in values.items()))


def _told_grub(now: State) -> Iterator[Any]:
    """GRUB's own configuration is made anew where it lacks a word, or has one too many."""
    lacks = [each for each in now.goal.words if each not in now.host.boot_words]
    stale = [each for each in now.before.stale_words(now.goal) if each in now.host.boot_words]
    if now.host.has_grub and (lacks or stale):
        yield "update-grub"


def _forgotten(now: State) -> Iterator[Any]:
    """What has been put back is recorded no more."""
    yield from _kept(now.before.kept(now.goal, now.host), now)


def contents(goal: Tuning) -> dict[str, str]:
    """The files of a tuning, by path."""
    sysctl = [each for each in goal.knobs if each.sysctl]
    disk = [each for each in goal.knobs if each.disk]
    others = {(each.pattern, each.value): each for each in goal.knobs if not each.sysctl and not each.disk}
    found = {
        facts.SYSCTL: render("host_tuning/sysctl.conf.j2", knobs=sysctl) if sysctl else "",
        facts.TMPFILES: render("host_tuning/tmpfiles.conf.j2", knobs=others.values()) if others else "",
        facts.UDEV: render("host_tuning/disk.rules.j2", knobs=disk) if disk else "",
        facts.GRUB: render("host_tuning/grub.cfg.j2", words=goal.words) if goal.words else "",
    }
    return {path: text for path, text in found.items() if text}


def _checked(now: State) -> Iterator[Any]:
    """Know that it is in effect: pools that lack refuse the node, everything else is a warning."""
    for each in now.goal.warnings:
        logger.warning("[%s] %s; %s", host.name, each.says, each.fix)
    for knob in now.goal.drifted(now.host):
        said = now.host.values[knob.path]
        logger.warning("[%s] %s stays %s: the kernel does not take %s", host.name, knob.path, said, knob.value)
    short = lacking(now.pools, now.host) if now.pools else []
    reboot = "reboot the node, or allow_reboot: True lets a deploy do it"
    if short:
        fix = reboot if now.pending else "reboot (memory is whole then), or tuning.huge_pages: 'thp'"
        yield refuse("; ".join(["tuning.huge_pages: " + "; ".join(now.pending or short), fix]))
        return
    for reason in now.pending:
        logger.warning("[%s] %s; %s", host.name, reason, reboot)
    host.noop("tuned as described")
