"""How a node gets the packages of NVIDIA's driver: Ubuntu's own, or on Debian those of NVIDIA's repository."""

from collections.abc import Generator
from typing import Any

from pyinfra import host, logger
from pyinfra.api import QuoteString, StringCommand
from pyinfra.operations import apt
from pyinfra.operations.apt import noninteractive_apt

from moehost import driver_packages, nvidia_repository
from moehost.apt import key_of
from moehost.driver import Driver, DriverError
from moehost.driver_packages import Choice, Offer, is_ubuntu
from moehost.settings import Node
from roles.apt import apt_source
from roles.facts import SourceState
from roles.nvidia import cuda_source
from roles.nvidia_driver import facts
from roles.operations import file_state, files, packages, render

CONTRIB = "/etc/apt/sources.list.d/moehost-contrib.sources"
OWN_FILES = {facts.NOUVEAU: "nvidia_driver/nouveau.conf.j2", facts.MODULES: "nvidia_driver/modules.conf.j2"}


def installed(driver: Driver, states: dict[str, list[str]], node: Node) -> Generator[Any, None, Choice]:
    """Have the packages and files of the driver; gives what was chosen, and raises DriverError where nothing can be.

    + states: what FileStates says of this role's files
    """
    driver_packages.check(driver)
    there = nvidia_repository.distribution(driver.system)
    if not there:
        raise DriverError(
            f"moehost knows of no driver for {driver.system.get('PRETTY_NAME', 'this system')}; install one and set "
            "nvidia.driver: 'keep'"
        )
    origin = "Ubuntu's archive"
    if not is_ubuntu(driver):
        source = cuda_source(there, node.engine.cuda_repository, node.engine.cuda_key)
        origin = source.uri
        yield from apt_source._inner(source=source)

    choice = driver_packages.choose(driver, node.nvidia.branch, driver_packages.of_node(driver))
    offer = None
    if choice.lacking:
        offer, choice = yield from _offered(driver, node.nvidia.branch, origin)
        if not is_ubuntu(driver):
            yield from _signed(driver)
        elif driver_packages.is_installed(driver, choice):
            # Apt has no modules for a flavour, and those of the running kernel are there.
            offer = None
    if not is_ubuntu(driver):
        preferences = render("nvidia_driver/driver.preferences.j2", branch=choice.branch)
        yield from _written({facts.PREFERENCES: preferences}, states)
    wanted = (yield from _installable(driver, choice, offer)) if offer else None
    # Before the packages, whose scripts make the initrd anew.
    yield from _written({path: render(template) for path, template in OWN_FILES.items()}, states)
    if wanted:
        if (before := driver_packages.installed_branch(driver)) not in (None, choice.branch):
            logger.warning("[%s] the driver %s is replaced by %s", host.name, before, choice.branch)
        yield _apt_install(wanted)
    return choice


def _written(contents: dict[str, str], states: dict[str, list[str]]) -> Generator[Any, None, None]:
    if any(states.get(path) != file_state(text) for path, text in contents.items()):
        yield from files._inner(contents=contents)


def _offered(driver: Driver, branch: str | None, origin: str) -> Generator[Any, None, tuple[Offer, Choice]]:
    """What apt has, and the choice from it; the lists are read anew if they lack something."""
    for is_fresh in (False, True):
        offer = driver_packages.of_apt(host.get_fact(facts.Offer))
        choice = driver_packages.choose(driver, branch, offer)
        if not choice.lacking:
            return offer, choice
        if not is_fresh:
            yield from apt.update._inner()
    has = f"it has {', '.join(offer.branches)}" if offer.branches else "see what `apt-get update` says"
    raise DriverError(
        f"nvidia.branch: {origin} has no {', '.join(choice.lacking)} for {driver.system.get('PRETTY_NAME')}, kernel "
        f"{driver.kernel}; of drivers {has}"
    )


def _signed(driver: Driver) -> Generator[Any, None, None]:
    """Have the key that DKMS signs with known to the firmware, where Secure Boot is on: only a person can do that."""
    if not driver.has_secure_boot or driver.is_key_enrolled:
        return
    yield from packages._inner(wanted=["dkms", "mokutil", "openssl"])
    key = facts.KEY.removesuffix(".pub")
    # As DKMS itself would make it, once it builds something.
    yield (
        f"test -s {facts.KEY} || (umask 077 && mkdir -p {facts.KEY.rpartition('/')[0]} && openssl req -new -x509 "
        f"-nodes -days 36500 -subj '/CN=DKMS module signing key' -newkey rsa:2048 -keyout {key}.key -outform DER "
        f"-out {facts.KEY})"
    )
    raise DriverError(
        "Secure Boot is on, and the firmware does not know the key that DKMS signs the driver's modules with: on the "
        f"node `mokutil --import {facts.KEY}` (asks for a password that you choose), reboot, choose 'Enroll MOK' at "
        "the console and give the password, deploy again; or switch Secure Boot off in the firmware"
    )


def _installable(driver: Driver, choice: Choice, offer: Offer) -> Generator[Any, None, list[str]]:
    """The packages that apt can install together, asked before anything is touched.

    NVIDIA's package with the pin comes first and alone, as its guide says.
    """
    pins = [name for name in choice.packages if "-pinning-" in name and name not in driver.packages]
    if pins:
        yield _apt_install(pins)
    wanted = [name for name in choice.packages if name not in pins]
    extras = driver_packages.recommended(driver, choice, offer)
    if not host.get_fact(facts.Unmet, packages=[*wanted, *extras]):
        return [*wanted, *extras]
    if suites := driver_packages.suites_without_contrib(driver, host.get_fact(facts.Offer)):
        signed = [(suite, uri, _key(suite, uri)) for suite, uri in suites]
        yield from files._inner(contents={CONTRIB: render("nvidia_driver/contrib.sources.j2", suites=signed)})
        yield from apt.update._inner()
    if unmet := host.get_fact(facts.Unmet, packages=wanted):
        raise DriverError(
            f"apt can't install {', '.join(wanted)}: {'; '.join(unmet)}; see `apt-get install --simulate "
            f"{' '.join(wanted)}` on the node"
        )
    return wanted


def _key(suite: str, uri: str) -> str:
    """The key of a suite that apt knows already."""
    naming = host.get_fact(SourceState, keyring=CONTRIB, paths=[], uri=uri.rstrip("/"))["naming"]
    return key_of(uri, suite, {path: text for path, text in naming.items() if path != CONTRIB})


def _apt_install(wanted: list[str]) -> StringCommand:
    """Install packages, also in the place of newer ones of another branch, and of held ones."""
    return StringCommand(
        noninteractive_apt("install"), "--no-install-recommends --allow-downgrades --allow-change-held-packages",
        *(QuoteString(package) for package in wanted),
    )  # fmt: skip
