"""How NVIDIA's driver gets onto a node and to work, and what is said where it doesn't."""

from collections.abc import Iterator
from typing import Any

from pyinfra import host, logger
from pyinfra.api import QuoteString, StringCommand, operation

from moehost import driver_packages
from moehost.driver import Driver, DriverError, findings, parse
from moehost.settings import Node
from roles.facts import FileStates
from roles.nvidia_driver import facts
from roles.nvidia_driver.packages import installed
from roles.operations import rebooted, refuse


@operation()
def driver(node: Node) -> Iterator[Any]:
    """
    Have NVIDIA's driver with open kernel modules, loaded, held, of one version; reboot for it where allowed.

    + node: settings of the node
    """
    texts = host.get_fact(facts.Driver)
    found = parse(texts)
    if not found.cards:
        if node.gpu == "require":
            yield refuse(
                "gpu: 'require', and there is no NVIDIA card on the PCI bus; look at its seat and power (`lspci -d "
                "10de:` shows it), or set gpu: 'auto'"
            )
        else:
            host.noop("no NVIDIA card on the PCI bus")
        return
    try:
        if node.nvidia.driver == "install":
            states = FileStates().process(texts["files"].splitlines())
            found = yield from _at_work(found, states, node)
    except DriverError as error:
        yield refuse(str(error))
        return
    yield from _checked(found, node)


def _at_work(found: Driver, states: dict[str, list[str]], node: Node) -> Iterator[Any]:
    """Have the driver installed, held and loaded; gives the state after that."""
    steps = installed(found, states, node)
    changed = False
    try:
        while True:
            yield next(steps)
            changed = True
    except StopIteration as end:
        branch = end.value.branch
    for step in (_held, _quiet, _loaded, _persistent):
        if changed:
            found = parse(host.get_fact(facts.Driver))
        changed = False
        for command in step(found, branch):
            changed = True
            yield command
    return parse(host.get_fact(facts.Driver)) if changed else found


def _held(found: Driver, branch: str) -> Iterator[Any]:
    """Nothing of it is changed by an upgrade."""
    if loose := [name for name in driver_packages.kept(found, branch) if name not in found.holds]:
        yield StringCommand("apt-mark", "hold", *(QuoteString(name) for name in loose))


def _quiet(found: Driver, _: str) -> Iterator[Any]:
    """No initrd starts nouveau."""
    for kernel in found.stale_initrds:
        yield StringCommand("update-initramfs", "-u", "-k", QuoteString(kernel))


def _loaded(found: Driver, _: str) -> Iterator[Any]:
    """The modules are in the kernel, if no other driver has a card: then only a reboot helps."""
    if not found.loaded and found.on_disk and not found.taken:
        yield "modprobe nvidia && modprobe nvidia_uvm"
    elif found.loaded and not found.has_uvm and not found.is_outdated:
        yield "modprobe nvidia_uvm"


def _persistent(found: Driver, _: str) -> Iterator[Any]:
    """The daemon keeps the cards awake; Ubuntu's is started by udev and can't be enabled."""
    if "disabled" in found.persistenced:
        yield "systemctl enable nvidia-persistenced"
    if found.persistenced and "active" not in found.persistenced and found.loaded and not found.needs_reboot:
        yield "systemctl start nvidia-persistenced"


def _checked(found: Driver, node: Node) -> Iterator[Any]:
    """Know that the driver works: reboot for it if that is allowed and helps, refuse the node if it doesn't."""
    # A driver that is kept may have nouveau back after each reboot.
    helps = found.needs_reboot and found.may_reboot and not (found.taken and node.nvidia.driver == "keep")
    if helps and node.allow_reboot:
        reasons = "; ".join(each.says for each in findings(found) if each.level == "error")
        yield from rebooted(reasons)
        found, helps = parse(host.get_fact(facts.Driver)), False
    said = findings(found)
    for each in said:
        if each.level == "warning":
            logger.warning("[%s] %s; %s", host.name, each.says, each.fix)
    errors = [f"{each.says}; {each.fix}" for each in said if each.level == "error"]
    if errors:
        yield refuse("; ".join([*errors, *(["allow_reboot: True lets a deploy reboot"] if helps else [])]))
        return
    host.noop(said[-1].says)
