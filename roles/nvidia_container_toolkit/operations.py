"""How a node gets NVIDIA's container toolkit, and a CDI specification that Podman can read."""

from collections.abc import Iterator
from typing import Any

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.operations import apt

from moehost import cdi
from moehost.apt import AptSource
from moehost.cdi import CdiError, Toolkit
from moehost.settings_nvidia import Nvidia
from roles.apt import apt_source
from roles.base import PROGRAMS
from roles.nvidia_container_toolkit.facts import ENV, ContainerToolkit, PackageVersions
from roles.operations import files, packages, refuse, render

KEY = "C95B321B61E88C1809C4F759DDCAE044F796ECB0"
PATH, SERVICE = "nvidia-cdi-refresh.path", "nvidia-cdi-refresh.service"
AT_WORK = ["enabled", "enabled", "active"]
# Podman reads no file with this ending.
ASIDE = ".replaced-by-moehost"


@operation()
def toolkit(nvidia: Nvidia) -> Iterator[Any]:
    """
    Have NVIDIA's container toolkit in one version, and a CDI specification of the cards that Podman can read.

    + nvidia: the settings of the cards
    """
    found = _look()
    if not found.cards:
        host.noop("no NVIDIA card in this machine: no container toolkit")
        return
    try:
        if not found.podman:
            yield from packages._inner(wanted=["podman"])
            found = _look()
        needs_flag = cdi.needs_flag(found.podman, nvidia.toolkit_version)
        if found.rivals:
            paths = " and ".join([found.output, *(each.path for each in found.rivals)])
            raise CdiError(
                f"{paths} would both describe {cdi.KIND}, and nobody keeps the second fresh: find out what wrote it, "
                "and move it out of its folder"
            )
        yield from apt_source._inner(source=source(nvidia))
        yield from _installed(found, nvidia)
        program = {f"{PROGRAMS}/cdi-fresh": render("nvidia_container_toolkit/cdi-fresh.j2")}
        yield from files._inner(contents=program, mode="755")
        yield from _fresh(needs_flag)
    except CdiError as error:
        yield refuse(str(error))


def _look() -> Toolkit:
    """What the node has now."""
    return cdi.parse(host.get_fact(ContainerToolkit))


def source(nvidia: Nvidia) -> AptSource:
    """Where the toolkit comes from; the key lies at the top of the repository."""
    repository = nvidia.toolkit_repository.rstrip("/")
    return AptSource(
        id="container-toolkit",
        uri=f"{repository}/amd64",
        suite="/",
        components=(),
        key_url=f"{repository.removesuffix('/stable/deb')}/gpgkey",
        fingerprint=nvidia.toolkit_key or KEY,
        preferences=render(
            "nvidia_container_toolkit/toolkit.preferences.j2", packages=cdi.PACKAGES, version=nvidia.toolkit_version
        ),
    )


def _installed(found: Toolkit, nvidia: Nvidia) -> Iterator[Any]:
    """Have the packages in the version that is wanted, whatever version is there."""
    version = nvidia.toolkit_version
    # The base alone makes specifications; what is there already must stay of the same version.
    wanted = [
        each for each in cdi.PACKAGES if each == cdi.BASE or each in found.packages or nvidia.container_runtimes
    ]
    if all(found.packages.get(each) == version for each in wanted):
        return
    offered = host.get_fact(PackageVersions, packages=wanted)
    if any(version not in offered.get(each, []) for each in wanted):
        # The lists are older than the source, maybe from before a run that was cut off.
        yield from apt.update._inner()
        offered = host.get_fact(PackageVersions, packages=wanted)
    if lacking := [each for each in wanted if version not in offered.get(each, [])]:
        others = ", ".join(offered.get(cdi.BASE, [])) or "none, see what `apt-get update` says"
        raise CdiError(
            f"nvidia.toolkit_version: apt has no {', '.join(lacking)} {version}; versions of {cdi.BASE} that it has: "
            f"{others}"
        )
    yield from apt.packages._inner(
        packages=[f"{each}={version}" for each in wanted], no_recommends=True, allow_downgrades=True
    )


def _fresh(needs_flag: bool) -> Iterator[Any]:
    """Have a specification that fits Podman and the driver, kept so by NVIDIA's units, and no other one."""
    texts = host.get_fact(ContainerToolkit)
    found = cdi.parse(texts)
    env = cdi.refresh_env(found.env, needs_flag)
    if env != found.env:
        yield from files._inner(contents={ENV: env})
    if texts["units"].split() != AT_WORK:
        yield f"systemctl enable --quiet --now {PATH} && systemctl enable --quiet {SERVICE}"
    finding = cdi.of_specification(found)
    if env != found.env or finding.level == "error":
        # Whether it worked is seen by what it wrote.
        yield "systemctl daemon-reload"
        yield f"systemctl reset-failed {SERVICE} 2>/dev/null; systemctl restart {SERVICE} || true"
        found = _look()
        finding = cdi.of_specification(found)
    if finding.level == "error":
        raise CdiError(f"{finding.says}, after a refresh; see: journalctl -u {SERVICE}")
    for each in found.strays:
        path = each.path
        yield StringCommand("mv", "--backup=numbered", "-T", QuoteString(path), QuoteString(f"{path}{ASIDE}"))
    host.noop(finding.says)
