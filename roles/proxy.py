"""What gateway and router have in common: a program before services, an account of its own, files of the owner's."""

from collections.abc import Iterator
from typing import Any

from pyinfra import host, logger
from pyinfra.api import QuoteString, StringCommand, operation

from roles.facts import FileStates, MissingPackages, PathsThere
from roles.llama_server.facts import ServiceState
from roles.operations import file_state, files, last_words, packages, refuse, shell


@operation()
def port_is_free(setting: str, unit: str, port: int) -> Iterator[Any]:
    """
    Refuse a port that another program has, before anything is touched.

    + setting: that names the port
    + unit: that may have it
    + port: the TCP port
    """
    if holder := host.get_fact(ServiceState, unit=unit, port=port).get("port_holder"):
        program, _, pid = holder.replace('"', "").partition(",pid=")
        yield refuse(f"{setting}: {port} is taken by {program} (pid {pid}); choose another or stop that program")
    else:
        host.noop(f"no other program has port {port}")


@operation()
def without_its_unit(wanted: list[str], unit: str) -> Iterator[Any]:
    """
    Have Debian's packages, without a server of their own; where they are already, that is its owner's.

    + wanted: names of packages; the first one brings the unit
    + unit: that must not start by being installed
    """
    missing = host.get_fact(MissingPackages, packages=wanted)
    if wanted[0] in missing:
        # A link to nothing in the place of the unit.
        yield f"systemctl mask --quiet {unit}"
    yield from packages._inner(wanted=wanted)


@operation()
def account(sysusers: str, text: str, user: str) -> Iterator[Any]:
    """
    Have an account, which systemd makes.

    + sysusers: path of the file that describes it
    + text: of that file
    + user: name of the account
    """
    yield from files._inner(contents={sysusers: text})
    if user not in host.get_fact(PathsThere, paths=[], account=user):
        yield f"systemd-sysusers {sysusers}"


@operation()
def handed_over(contents: dict[str, str | None], mode: str, owner: str) -> Iterator[Any]:
    """
    Have files of the owner's, and none where he has none.

    + contents: path of each file and the text in it, None for none
    + mode: permissions of the files
    + owner: user and group of the files, `user:group`
    """
    there = host.get_fact(FileStates, paths=list(contents))
    for path in (path for path, text in contents.items() if text is None and path in there):
        yield StringCommand("rm", QuoteString(path))
    texts = {path: text for path, text in contents.items() if text is not None}
    if any(there.get(path) != file_state(text, mode, owner) for path, text in texts.items()):
        yield from files._inner(contents=texts, mode=mode, owner=owner)


def asked_of_systemd(state: Any, host: Any, unit: str, verb: str) -> bool:
    """Restart or reload a unit; False with the end of its journal where that fails."""
    done, _ = shell(host, f"systemctl reset-failed {unit} 2>/dev/null; systemctl {verb} {unit}")
    if not done:
        host.log_styled(f"{unit} does not {verb}; its last words:", fg="red", log_func=logger.error)
        journal(host, unit)
    return done


def journal(host: Any, unit: str) -> None:
    """Show the end of a unit's journal."""
    for line in last_words(host, f"--unit {unit}", 20):
        host.log(f"    {line}", logger.error)
