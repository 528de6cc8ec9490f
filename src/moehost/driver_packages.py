"""Which packages are NVIDIA's driver on a node, of those that apt has, and which of them stay as they are.

Sources: Ubuntu's packages of linux-restricted-modules and nvidia-graphics-drivers-580-server; NVIDIA's driver
installation guide for Debian (compute-only, open modules, version locking).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from moehost.driver import VERSION, Driver, DriverError

# The branches that NVIDIA keeps up: 580 until 2028, which NVIDIA's repository for Debian 13 lacks, and then 595.
BRANCHES = ("580", "595")
# With what nvidia-driver-cuda only recommends; taken where apt has it.
RECOMMENDED = ("nvidia-persistenced", "nvidia-modprobe")
# Of NVIDIA's repository: these names have no branch in them.
UNNUMBERED = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms")
OF_ONE_KERNEL = re.compile(r"-\d+[.]\d+[.]\d+-\d+-")
PART = re.compile(r".*nvidia.*|lib(cuda|cudadebugger|nvcuvid|nvoptix)\d?")


@dataclass(frozen=True)
class Offer:
    """What there is to choose from.

    + names: names of packages
    + branches: of the driver, the newest first
    """

    names: frozenset[str]
    branches: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The packages of a driver.

    + branch: of the driver; None where none is to be had
    + packages: what is to be installed
    + lacking: what was looked for and is not there
    """

    branch: str | None
    packages: tuple[str, ...]
    lacking: tuple[str, ...]


def is_ubuntu(driver: Driver) -> bool:
    """Whether the driver comes from Ubuntu's own archive, with modules that Canonical has built and signed."""
    return driver.system.get("ID") == "ubuntu"


def of_apt(texts: Mapping[str, str]) -> Offer:
    """What the fact `roles.nvidia_driver.facts.Offer` reads."""
    names = frozenset(texts["names"].split())
    numbered = (re.match(r"nvidia-headless-no-dkms-(\d+)", name) for name in names)
    versions = re.findall(r"\| (\d{3})[.]", texts["versions"])
    found = {*versions, *(match[1] for match in numbered if match)}
    return Offer(names, tuple(sorted(found, reverse=True)))


def of_node(driver: Driver) -> Offer:
    """What is installed, without the modules of one kernel where upgrades follow flavours: apt may have theirs."""
    branch = installed_branch(driver)
    if not branch:
        return Offer(frozenset(), ())
    versions = driver.packages.items()
    names = {name for name, version in versions if name not in UNNUMBERED or version.startswith(f"{branch}.")}
    if flavours(driver):
        names -= {f"linux-modules-nvidia-{branch}{kind}-open-{driver.kernel}" for kind in ("-server", "")}
    return Offer(frozenset(names), (branch,))


def installed_branch(driver: Driver) -> str | None:
    """The branch of the driver that packages have installed."""
    for package in (*UNNUMBERED, "libcuda1", "libnvidia-compute"):
        if re.match(VERSION, driver.packages.get(package, "")):
            return driver.packages[package][:3]
    for package in ("nvidia-headless-no-dkms", "nvidia-utils", "libnvidia-compute", "nvidia-dkms"):
        for name in driver.packages:
            if match := re.match(rf"{package}-(\d{{3}})\b", name):
                return match[1]
    return None


def is_installed(driver: Driver, choice: Choice) -> bool:
    """Whether nothing of a choice is missing."""
    return choice.branch == installed_branch(driver) and set(choice.packages) <= set(driver.packages)


def choose(driver: Driver, wanted: str | None, offer: Offer) -> Choice:
    """The packages of the driver on this node.

    + wanted: branch that the owner wants; without it, the installed one stays if it is one that is kept up
    """
    installed = installed_branch(driver)
    usual = [installed, *BRANCHES] if installed in BRANCHES else BRANCHES
    branch = wanted or next((each for each in usual if each in offer.branches), None)
    if not branch:
        return Choice(None, (), tuple(f"driver {each}" for each in BRANCHES))
    kinds = _ubuntu(driver, branch) if is_ubuntu(driver) else [_debian(driver, branch)]
    choices = [_pick(branch, parts, offer) for parts in kinds]
    return next((choice for choice in choices if not choice.lacking), choices[0])


def _pick(branch: str, parts: list[list[str]], offer: Offer) -> Choice:
    """Of each part the first name that is there."""
    names = offer.names if branch in offer.branches else offer.names - set(UNNUMBERED)
    found = [next((name for name in part if name in names), None) for part in parts]
    lacking = tuple(" or ".join(part) for part, name in zip(parts, found, strict=True) if not name)
    return Choice(branch, tuple(dict.fromkeys(filter(None, found))), lacking)


def flavours(driver: Driver) -> list[str]:
    """The kernels that upgrades follow: `generic`, `generic-hwe-24.04`, `amd64` ..."""
    images = (re.fullmatch(r"linux-image-((?!unsigned-)[a-z][\w.+-]*)", package) for package in driver.packages)
    return [match[1] for match in images if match and not match[1].endswith("-dbg")]


def _ubuntu(driver: Driver, branch: str) -> list[list[list[str]]]:
    """The parts of each kind: Ubuntu's branch for servers, and its other one, which comes first if it is there."""
    kinds = []
    for kind in ("-server", ""):
        modules = f"linux-modules-nvidia-{branch}{kind}-open"
        exact = f"{modules}-{driver.kernel}"
        kinds.append(
            [
                *([f"{modules}-{flavour}", exact] for flavour in flavours(driver) or [driver.kernel]),
                [f"nvidia-headless-no-dkms-{branch}{kind}-open"],
                [f"nvidia-utils-{branch}{kind}"],
                [f"nvidia-compute-utils-{branch}{kind}"],
            ]
        )
    return kinds[::-1] if f"nvidia-utils-{branch}" in driver.packages else kinds


def _debian(driver: Driver, branch: str) -> list[list[str]]:
    """The parts: the pin first, and headers for each kernel that DKMS builds for."""
    exact = f"linux-headers-{driver.kernel}"
    return [
        [f"nvidia-driver-pinning-{branch}"],
        ["nvidia-driver-cuda"],
        ["nvidia-kernel-open-dkms"],
        *([f"linux-headers-{flavour}", exact] for flavour in flavours(driver)),
    ]


def recommended(driver: Driver, choice: Choice, offer: Offer) -> list[str]:
    """What is installed along with a choice if it can be: on Ubuntu the modules of the kernels that are there."""
    if not is_ubuntu(driver):
        return [name for name in RECOMMENDED if name in offer.names]
    modules = (re.match(r"linux-modules-nvidia-\d+(-server)?-open-", name) for name in choice.packages)
    kernels = dict.fromkeys([driver.kernel, *(kernel.release for kernel in driver.kernels)])
    exact = {f"{match[0]}{kernel}": None for match in modules if match for kernel in kernels}
    return [name for name in exact if name in offer.names and name not in choice.packages]


def suites_without_contrib(driver: Driver, texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Release and address of each of Debian's archives in use without its component contrib.

    + texts: what the fact `roles.nvidia_driver.facts.Offer` reads
    """
    if driver.system.get("ID") != "debian":
        return []
    targets = set(re.findall(r"^(\S+) (\S+) (\S+)$", texts["components"], re.MULTILINE))
    main = {(release, address) for component, release, address in targets if component == "main"}
    return sorted(each for each in main if ("contrib", *each) not in targets)


def check(driver: Driver) -> None:
    """Raise DriverError where no driver is to be installed over what the node has."""
    if old := [card for card in driver.cards if not card.has_open_modules]:
        raise DriverError(
            f"the card {old[0].address} (device {old[0].device_id:04x}) is older than Turing, and the open kernel "
            "modules don't run it; install its driver yourself and set nvidia.driver: 'keep'"
        )
    if driver.has_run_file:
        raise DriverError(
            "a driver of NVIDIA's .run installer is there, which packages must not be mixed with; remove it with "
            "`nvidia-uninstall`, or keep it with nvidia.driver: 'keep'"
        )
    if foreign := _foreign(driver):
        raise DriverError(
            f"the driver is to come from Ubuntu's archive, and {', '.join(foreign)} came from NVIDIA's repository: "
            f"a mix breaks; remove it with `apt-get purge {' '.join(foreign)}` and `apt-get autoremove --purge`, or "
            "keep it with nvidia.driver: 'keep'"
        )


def _foreign(driver: Driver) -> list[str]:
    """Packages of a driver that is of another origin.

    Ubuntu's own versions end in `0ubuntu0.24.04.1`, those that NVIDIA makes for Ubuntu in `ubuntu1`; older ones than
    any branch that is kept up are not looked at, since apt replaces them. On Debian the two can't be told apart.
    """
    if not is_ubuntu(driver):
        return []
    drivers = {name: version for name, version in driver.packages.items() if _is_part(name, version)}
    return sorted(
        name
        for name, version in drivers.items()
        if version[:3] >= min(BRANCHES) and not re.search(r"ubuntu\d+[.]\d", version)
    )


def _is_part(package: str, version: str) -> bool:
    """Whether a package is a part of a driver, by its name and a version such as 580.95.05-1."""
    return bool(PART.fullmatch(package) and re.match(rf"{VERSION}-", version))


def kept(driver: Driver, branch: str) -> list[str]:
    """The installed packages that no upgrade shall change: the driver, and on Ubuntu the kernels that it goes with.

    There the module of a kernel is a package of its own, and a newer kernel would have none.
    """
    names = [
        name
        for name, version in driver.packages.items()
        if (_is_part(name, version) and version.startswith(f"{branch}."))
        or (re.search(rf"nvidia.*-{branch}\b", name) and not OF_ONE_KERNEL.search(name))
    ]
    if is_ubuntu(driver):
        kernels = {f"linux-{part}{flavour}" for flavour in flavours(driver) for part in ("", "image-", "headers-")}
        names += kernels & set(driver.packages)
    return sorted(names)
