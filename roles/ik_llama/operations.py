"""How an engine becomes a release, and a release the current one."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation

from roles.facts import MissingPackages, OsRelease
from roles.ik_llama.facts import CURRENT, Mirrors, PackageCandidates, PackagedEngine, Release
from roles.operations import files, packages, refuse, render

RELEASES = "/opt/moehost/engine/releases"
# Debian 13 itself carries no llama.cpp; its successor does.
NEXT_SUITE = {"trixie": "forky"}


@operation()
def package_available(package: str) -> Iterator[Any]:
    """
    Have a suite in apt's sources that holds the distribution's llama.cpp: the node's own, or the one after it.

    + package: name of the package
    """
    if not host.get_fact(MissingPackages, packages=[package]):
        host.noop(f"{package} is installed")
        return
    system, suite = _system()
    codename, this = system.get("VERSION_CODENAME", ""), system.get("PRETTY_NAME", "this system")
    if not suite:
        if host.get_fact(PackageCandidates, packages=[package]):
            host.noop(f"{this} has {package}")
        else:
            yield refuse(
                f"engine.source: 'package' needs {package}, which {this} does not have; Debian 13 and later do"
            )
        return
    mirrors = host.get_fact(Mirrors, codename=codename)
    if not mirrors:
        yield refuse(f"{package} comes from {suite}, but apt has no mirror of {codename} on {this}; add one")
        return
    values = {"suite": suite, "mirror": mirrors[0]}
    yield from files._inner(
        contents={
            f"/etc/apt/preferences.d/60-moehost-{suite}": render("ik_llama/preferences.j2", **values),
            f"/etc/apt/sources.list.d/moehost-{suite}.sources": render("ik_llama/suite.sources.j2", **values),
        }
    )


@operation()
def package_installed(package: str) -> Iterator[Any]:
    """
    Have the distribution's llama.cpp, with what it needs from the same suite.

    The suite follows from the system and not from what apt offers just now: after a run that was cut off, apt offers
    the package of the next suite, and can't install it with what the node's own suite has.

    + package: name of the package
    """
    _, suite = _system()
    yield from packages._inner(wanted=[package], release=suite)


def _system() -> tuple[dict[str, str], str | None]:
    """The fields of the node's os-release, and the suite that its llama.cpp comes from if not from its own."""
    system = host.get_fact(OsRelease)
    return system, NEXT_SUITE.get(system.get("VERSION_CODENAME", ""))


@operation()
def packaged_release(package: str) -> Iterator[StringCommand]:
    """
    Have a release for the installed package, and make it the current one.

    A packaged release is a link to the package's files, so an upgrade of the package makes a new release and
    the one before can't be gone back to.

    + package: name of the package
    """
    engine = host.get_fact(PackagedEngine, package=package)
    if not engine.get("version"):
        if host.get_fact(MissingPackages, packages=[package]):
            # Planning a run that will install it.
            yield StringCommand("test", "-x", "/usr/bin/llama-server")
        else:
            yield refuse(f"{package} is installed, but `llama-server --version` says nothing; reinstall the package")
        return
    name = re.sub(r"[^A-Za-z0-9.+-]", "_", f"{engine['package']}-{engine['sha256'][:12]}")
    state = host.get_fact(Release)
    if name not in state["releases"]:
        build = {
            "source": "package",
            "dialect": "llama.cpp",
            **engine,
            "proofs": {"version": engine["version"]},
        }
        new = f"{RELEASES}/.{name}"
        yield StringCommand("rm", "-rf", QuoteString(new), "&&", "mkdir", "-p", QuoteString(f"{new}/bin"))
        yield StringCommand("ln", "-s", QuoteString(engine["path"]), QuoteString(f"{new}/bin/llama-server"))
        # Written last: a release without it is not one.
        yield StringCommand(
            "cat", ">", QuoteString(f"{new}/build.json"), "&&", "sync", QuoteString(new),
            "&&", "mv", "-T", QuoteString(new), QuoteString(f"{RELEASES}/{name}"),
            _stdin=json.dumps(build, indent=2) + "\n",
        )  # fmt: skip
    if state["current"] != name:
        yield StringCommand("ln", "-sfn", QuoteString(f"releases/{name}"), f"{CURRENT}.new")
        yield StringCommand("mv", "-T", f"{CURRENT}.new", CURRENT)
    elif name in state["releases"]:
        host.noop(f"release {name} is current")
