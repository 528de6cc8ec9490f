"""How an engine becomes a release, and a release the current one."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation

from roles.facts import FileStates, MissingPackages, OsRelease
from roles.ik_llama.facts import (
    ENGINE,
    RELEASES,
    Mirrors,
    PackageCandidates,
    PackagedEngine,
    PackagedWorker,
    Releases,
)
from roles.operations import files, packages, refuse, render

# Debian 13 itself carries no llama.cpp; its successor does.
NEXT_SUITE = {"trixie": "forky"}
# The backend that speaks RPC, and rpc-server.
RPC_PACKAGES = ["libggml0-backend-rpc", "llama.cpp-tools-extra"]


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
            _sources(suite): render("ik_llama/suite.sources.j2", **values),
        }
    )


@operation()
def package_installed(wanted: list[str]) -> Iterator[Any]:
    """
    Have packages of the distribution's llama.cpp, with what it needs from the same suite.

    The suite follows from the system and not from what apt offers just now: after a run that was cut off, apt offers
    the package of the next suite, and can't install it with what the node's own suite has.

    + wanted: names of the packages
    """
    if not host.get_fact(MissingPackages, packages=wanted):
        host.noop(f"installed: {', '.join(wanted)}")
        return
    _, suite = _system()
    yield from packages._inner(wanted=wanted, release=suite)


def _system() -> tuple[dict[str, str], str | None]:
    """The fields of the node's os-release, and the suite that its llama.cpp comes from if not from its own."""
    system = host.get_fact(OsRelease)
    return system, NEXT_SUITE.get(system.get("VERSION_CODENAME", ""))


def suite_in_use() -> str | None:
    """The suite after the node's own, where a packaged engine came from it: then the libraries are of it, too."""
    _, suite = _system()
    if suite and host.get_fact(FileStates, paths=[_sources(suite)]):
        return suite
    return None


def _sources(suite: str) -> str:
    return f"/etc/apt/sources.list.d/moehost-{suite}.sources"


@operation()
def packaged_release(package: str, rpc: bool = False) -> Iterator[Any]:
    """
    Have a release for the installed package, and have it be the next one.

    A packaged release is a link to the package's files, so an upgrade of the package makes a new release and
    the one before can't be gone back to.

    + package: name of the package
    + rpc: whether the release has rpc-server
    """
    engine = host.get_fact(PackagedEngine, package=package)
    if not engine.get("version"):
        if host.get_fact(MissingPackages, packages=[package]):
            # Planning a run that will install it.
            yield StringCommand("test", "-x", "/usr/bin/llama-server")
        else:
            yield refuse(f"{package} is installed, but `llama-server --version` says nothing; reinstall the package")
        return
    name = f"{engine['package']}-{engine['sha256'][:12]}"
    shared = host.get_fact(PackagedWorker) if rpc else {}
    if rpc and not shared.get("rpc_server") and host.get_fact(MissingPackages, packages=RPC_PACKAGES):
        # Planning a run that will install them.
        yield StringCommand("ls /usr/libexec/*/llama/bin/ggml-rpc-server")
        return
    if rpc and not shared.get("rpc_server"):
        yield refuse("engine.rpc: the packages have no rpc-server, or no backend for it; take engine.source 'git'")
        return
    if rpc:
        # Another release than the one without: it is told to services as any other.
        name += f"-rpc{shared['backend']}"
    name = re.sub(r"[^A-Za-z0-9.+-]", "_", name)
    there = host.get_fact(Releases)
    if name not in there["releases"]:
        build = {
            "source": "package",
            "dialect": "llama.cpp",
            **engine,
            **shared,
            "proofs": {"version": engine["version"]},
        }
        new = f"{RELEASES}/.{name}"
        yield StringCommand("rm", "-rf", QuoteString(new), "&&", "mkdir", "-p", QuoteString(f"{new}/bin"))
        yield StringCommand("ln", "-s", QuoteString(engine["path"]), QuoteString(f"{new}/bin/llama-server"))
        if rpc:
            yield StringCommand("ln", "-s", QuoteString(shared["rpc_server"]), QuoteString(f"{new}/bin/rpc-server"))
        # Written last: a release without it is not one.
        yield StringCommand(
            "cat", ">", QuoteString(f"{new}/build.json"), "&&", "sync", QuoteString(new),
            "&&", "mv", "-T", QuoteString(new), QuoteString(f"{RELEASES}/{name}"),
            _stdin=json.dumps(build, indent=2) + "\n",
        )  # fmt: skip
    yield from chosen(name, there)


def chosen(release: str, there: dict[str, Any]) -> Iterator[StringCommand]:
    """
    Have a release be the next one, and the current one where there is none: the services decide over the rest.

    + release: its name
    + there: the fact `Releases`
    """
    links = [link for link in ("next", "current") if link == "next" or not there["current"]]
    changes = [link for link in links if there[link] != release]
    for link in changes:
        path = f"{ENGINE}/{link}"
        yield StringCommand("ln", "-sfn", QuoteString(f"releases/{release}"), f"{path}.new")
        yield StringCommand("mv", "-T", f"{path}.new", path)
    if not changes and release in there["releases"]:
        host.noop(f"release {release} is next")


@operation()
def named_next(release: str) -> Iterator[Any]:
    """
    Have a release that is there be the next one.

    + release: the beginning of its name, or `previous`
    """
    there = host.get_fact(Releases)
    wanted = there["previous"] if release == "previous" else release
    fits = [each for each in there["releases"] if wanted and each.startswith(wanted)]
    if len(fits) == 1:
        yield from chosen(fits[0], there)
    elif not wanted:
        yield refuse(f"no release served before {there['current'] or 'the first one'}")
    else:
        problem = "is the beginning of several names" if fits else "is not there"
        yield refuse(f"the release {release} {problem}; there are: {', '.join(there['releases']) or 'none'}")


@operation()
def pruned(keep: int) -> Iterator[StringCommand]:
    """
    Have no more than so many releases; the current one, the next and the previous are always among them.

    + keep: how many, newest first
    """
    there = host.get_fact(Releases)
    linked = [there[link] for link in ("current", "next", "previous") if there[link]]
    stay = list(dict.fromkeys([*linked, *there["releases"]]))[: max(keep, len(set(linked)))]
    leave = [each for each in there["releases"] if each not in stay]
    for each in leave:
        # Renamed first: what is half removed is no release.
        yield StringCommand("mv -T", QuoteString(f"{RELEASES}/{each}"), QuoteString(f"{RELEASES}/.{each}.gone"))
    if gone := [*there["leftovers"], *(f".{each}.gone" for each in leave)]:
        yield StringCommand("rm -rf", *(QuoteString(f"{RELEASES}/{each}") for each in gone))
    else:
        host.noop(f"{len(there['releases'])} releases, {keep} may stay")
