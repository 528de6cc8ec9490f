"""`moehost vm ...`: a node with a kernel of its own, in a virtual machine on this computer."""

from __future__ import annotations

import os

import click

from moehost import virtual
from moehost.sandbox import run
from moehost.terminal import say, stop

UNITS = "systemctl list-units --all --plain --no-legend 'llama-server-*' 'moehost-*'"


@click.group("vm")
def vm() -> None:
    """A node with a kernel of its own: Debian in a virtual machine on this computer, reached over SSH."""


_name = click.option("--name", default=virtual.NAME, show_default=True, help="Name of the machine.")


@vm.command()
@_name
@click.option("--include", multiple=True, metavar="PACKAGE", help="A package that a new one has from the beginning.")
def up(name: str, include: tuple[str, ...]) -> None:
    """Make and start the machine.

    \b
    Example:
        moehost vm up
        moehost vm up --name other --include podman --include crun
    """
    virtual.up(virtual.Machine(name), say, include)


@vm.command()
@_name
@click.option("--all", "everything", is_flag=True, help="Remove all machines, and the disks that they start from.")
def down(name: str, everything: bool) -> None:
    """Remove the machine with its disks.

    \b
    Example:
        moehost vm down --all
    """
    if everything:
        virtual.clean(say)
    else:
        say(f"removed {name}" if virtual.down(virtual.Machine(name)) else f"there is no {name}")


@vm.command()
@_name
def wipe(name: str) -> None:
    """Give the machine a new root disk, as if it had been installed again; the models' disk stays.

    \b
    Example:
        moehost vm wipe
    """
    virtual.wipe(virtual.Machine(name), say)


@vm.command()
@_name
def status(name: str) -> None:
    """Say whether the machine runs, how it is reached, and its services.

    \b
    Example:
        moehost vm status
    """
    machine = virtual.Machine(name)
    state = "running" if machine.pid else "stopped" if machine.exists else "absent"
    click.echo(f"{name}: {state}")
    if machine.pid:
        click.echo(" ".join(machine.ssh))
        click.echo(run([*machine.ssh, UNITS]).stdout, nl=False)


@vm.command()
@_name
def shell(name: str) -> None:
    """Open a shell in the machine.

    \b
    Example:
        moehost vm shell
    """
    machine = virtual.Machine(name)
    if not machine.pid:
        stop(f"{name} does not run; start it with `moehost vm up`")
    os.execvp("ssh", machine.ssh)  # noqa: S606
