"""The states of a driver: each has its own sentence, and a command that mends it."""

import pytest

from moehost.driver import DriverError, findings, module_package, parse
from moehost.driver_packages import BRANCHES, Offer, check, choose, kept, of_apt, of_node, suites_without_contrib
from tests.fixtures.driver import (
    BLACKWELL,
    CLOSED,
    DEBIAN_HELD,
    DEBIAN_PACKAGES,
    PASCAL,
    TRIXIE,
    UBUNTU_HELD,
    UBUNTU_PACKAGES,
    card,
    debian,
    installed,
    loaded,
    texts,
    ubuntu,
)

NEW = "6.12.60+deb13-amd64"
MODULE = "/lib/modules/x/updates/dkms/nvidia.ko.xz"
SMI_MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.126\n"
# State of a node: texts, level, the beginning of what is said, what is in its fix, whether a reboot is what helps.
STATES = {
    "no card": (texts(system=TRIXIE), "ok", "no NVIDIA card on the PCI bus", None, False),
    "works": (debian(**loaded()), "ok", "driver 580.95.05 with open kernel modules, 1 card", None, False),
    "two cards": (
        debian(**loaded(pci=card(taken_by="nvidia") + card("0000:c1:00.0", taken_by="nvidia"))),
        "ok",
        "driver 580.95.05 with open kernel modules, 2 cards",
        None,
        False,
    ),
    "no driver": (
        debian(),
        "error",
        "1 card on the PCI bus, and no driver for the kernel 6.12.57+deb13-amd64",
        "nvidia.driver: 'install'",
        False,
    ),
    "a module that was not built": (
        debian(packages=installed(DEBIAN_PACKAGES)),
        "error",
        "the driver is installed, and the kernel 6.12.57+deb13-amd64 has no module of it",
        "apt-get install linux-headers-6.12.57+deb13-amd64 && dkms autoinstall -k 6.12.57+deb13-amd64",
        False,
    ),
    "nouveau": (
        debian(pci=card(taken_by="nouveau")),
        "error",
        "nouveau has the card 0000:01:00.0",
        "systemctl reboot",
        True,
    ),
    "nova": (debian(pci=card(taken_by="NovaCore")), "error", "NovaCore has the card 0000:01:00.0", "reboot", True),
    "not loaded": (
        debian(on_disk="580.95.05\n", licence="Dual MIT/GPL\n"),
        "error",
        "the driver 580.95.05 is installed and not loaded",
        "modprobe nvidia",
        False,
    ),
    "for another kernel": (
        debian(kernels=f"6.12.57+deb13-amd64 \n{NEW} {MODULE}\n"),
        "error",
        f"the driver is there for the kernel {NEW}, and 6.12.57+deb13-amd64 is running",
        "systemctl reboot",
        True,
    ),
    "closed": (
        debian(**loaded(taint="POE\n", licence=CLOSED)),
        "error",
        "the kernel modules are the closed ones, which don't know the card 0000:01:00.0",
        "nvidia.driver: 'install'",
        False,
    ),
    "closed on disk": (
        debian(**loaded(loaded="", taint="", uvm="", smi="", licence=CLOSED)),
        "error",
        "the driver 580.95.05 is installed and not loaded",
        "modprobe",
        False,
    ),
    "closed and loaded, open on disk": (
        debian(**loaded(taint="PO\n")),
        "error",
        "the closed module is loaded, and the open one installed",
        "systemctl reboot",
        True,
    ),
    "upgraded": (
        debian(**loaded(on_disk="580.126.09\n", smi=SMI_MISMATCH)),
        "error",
        "driver/library version mismatch: 580.95.05 is loaded, and 580.126.09 installed",
        "systemctl reboot",
        True,
    ),
    "library of another version": (
        debian(**loaded(smi=SMI_MISMATCH)),
        "error",
        "driver/library version mismatch: the module is 580.95.05, and the libraries are of another",
        "--fix-broken",
        False,
    ),
    "no uvm": (debian(**loaded(uvm="")), "error", "nvidia_uvm is not loaded", "modprobe nvidia_uvm", False),
    "nvidia-smi finds nothing": (
        debian(**loaded(smi="No devices were found\n")),
        "error",
        "nvidia-smi shows no card: No devices were found",
        "NVRM",
        False,
    ),
    "no nvidia-smi": (debian(**loaded(smi="")), "error", "nvidia-smi shows no card: there is none", "NVRM", False),
    "newer kernel without module": (
        debian(**loaded(kernels=f"6.12.57+deb13-amd64 {MODULE}\n{NEW} \n")),
        "warning",
        f"the kernel {NEW} is installed and has no NVIDIA module",
        f"apt-get install linux-headers-{NEW} && dkms autoinstall -k {NEW}",
        False,
    ),
    "persistenced": (
        debian(**loaded(persistenced="enabled\ninactive\n")),
        "warning",
        "nvidia-persistenced is not running",
        "systemctl enable --now nvidia-persistenced",
        False,
    ),
    "a reboot for something else": (
        debian(**loaded(reboot_required="linux-image-6.12.60+deb13-amd64\nlinux-base\nlinux-base\n")),
        "warning",
        "/run/reboot-required: linux-image-6.12.60+deb13-amd64 linux-base; the driver needs no reboot",
        "systemctl reboot",
        False,
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_each_state_has_a_sentence_and_a_fix(state):
    said, level, says, fix, needs_reboot = STATES[state]
    driver = parse(said)
    first = findings(driver)[0]
    assert (first.area, first.level) == ("reboot" if "something else" in state else "driver", level)
    assert first.says.startswith(says)
    assert (fix in first.fix) if fix else first.fix is None
    assert driver.needs_reboot == needs_reboot


def test_a_closed_driver_does_on_a_card_before_blackwell():
    driver = parse(debian(**loaded(pci=card(device="0x2684", taken_by="nvidia"), taint="POE\n", licence=CLOSED)))
    assert [each.says for each in findings(driver)] == ["driver 580.95.05 with closed kernel modules, 1 card"]


def test_a_closed_driver_on_disk_is_named_beside_what_is_not_loaded():
    said = findings(parse(STATES["closed on disk"][0]))
    assert any("the closed ones" in each.says for each in said)


def test_a_kernel_without_module_stands_in_the_way_of_a_reboot():
    kernels = f"6.12.57+deb13-amd64 {MODULE}\n{NEW} \n"
    driver = parse(debian(**loaded(on_disk="580.126.09\n", kernels=kernels)))
    assert driver.needs_reboot
    assert not driver.may_reboot
    assert [each.level for each in findings(driver)] == ["error", "error"]


def test_the_module_of_an_ubuntu_kernel_is_a_package():
    driver = parse(ubuntu(packages=installed(UBUNTU_PACKAGES)))
    command = "apt-get install linux-modules-nvidia-580-server-open-6.8.0-60-generic"
    assert module_package(driver, "6.8.0-60-generic") == command


@pytest.mark.parametrize(
    ("text", "is_on"),
    [
        ("SecureBoot enabled\n", True),
        ("SecureBoot disabled\n", False),
        ("   1\n", True),
        ("   0\n", False),
        ("", False),
    ],
)
def test_secure_boot(text, is_on):
    assert parse(texts(secure_boot=text)).has_secure_boot == is_on


@pytest.mark.parametrize(
    ("text", "is_enrolled"),
    [
        ("/var/lib/dkms/mok.pub is already enrolled\n", True),
        ("/var/lib/dkms/mok.pub is not enrolled\n", False),
        ("Failed to open file\n", False),
    ],
)
def test_the_key_of_dkms(text, is_enrolled):
    assert parse(texts(key=text)).is_key_enrolled == is_enrolled


def server(flavour):
    """Ubuntu's packages for servers."""
    parts = ["nvidia-headless-no-dkms-580-server-open", "nvidia-utils-580-server", "nvidia-compute-utils-580-server"]
    return [f"linux-modules-nvidia-580-server-open-{flavour}", *parts]


class TestChoice:
    @pytest.mark.parametrize(
        ("flavour", "kernel"),
        [("generic", "6.8.0-51-generic"), ("generic-hwe-24.04", "6.17.0-41-generic"), ("lowlatency", "6.8.0-51-x")],
    )
    def test_each_flavour_of_ubuntu_has_its_modules(self, flavour, kernel):
        offer = Offer(frozenset(server(flavour)), ("580",))
        choice = choose(parse(ubuntu(flavour, kernel)), None, offer)
        assert (choice.branch, list(choice.packages), choice.lacking) == ("580", server(flavour), ())

    def test_the_running_kernels_modules_do_where_its_flavour_has_none(self):
        offer = Offer(frozenset(server("6.8.0-51-generic")), ("580",))
        assert list(choose(parse(ubuntu("virtual")), None, offer).packages) == server("6.8.0-51-generic")

    def test_the_other_branch_does_where_there_is_none_for_servers(self):
        names = [name.replace("-server", "") for name in server("generic")]
        assert list(choose(parse(ubuntu()), None, Offer(frozenset(names), ("580",))).packages) == names

    def test_what_is_installed_stays(self):
        names = [name.replace("-server", "") for name in server("generic")]
        there = dict.fromkeys(names, "580.95.05-0ubuntu0.24.04.3") | {"linux-image-generic": "6.8.0-51.52"}
        driver = parse(ubuntu(packages=installed(there)))
        both = Offer(frozenset([*names, *server("generic")]), ("580",))
        assert "nvidia-utils-580" in choose(driver, None, both).packages

    def test_what_was_looked_for_is_named(self):
        choice = choose(parse(ubuntu()), "580", Offer(frozenset(), ()))
        first = (
            "linux-modules-nvidia-580-server-open-generic or linux-modules-nvidia-580-server-open-6.8.0-51-generic"
        )
        assert choice.lacking == (first, *server("generic")[1:])

    @pytest.mark.parametrize(
        ("wanted", "branches", "branch"),
        [
            (None, ("610", "595", "590", "580"), "580"),
            (None, ("610", "595", "590"), "595"),
            ("590", ("610", "595", "590"), "590"),
            (None, ("610",), None),
        ],
    )
    def test_the_branch(self, wanted, branches, branch):
        names = ["nvidia-driver-cuda", "nvidia-kernel-open-dkms", "linux-headers-amd64"]
        offer = Offer(frozenset([*names, *(f"nvidia-driver-pinning-{each}" for each in branches)]), branches)
        choice = choose(parse(debian()), wanted, offer)
        assert (choice.branch, bool(choice.lacking)) == (branch, branch is None)

    def test_a_branch_that_is_kept_up_stays_when_an_earlier_one_appears(self):
        packages = {name: version.replace("580.95", "595.58") for name, version in DEBIAN_PACKAGES.items()}
        driver = parse(debian(packages=installed(packages | {"nvidia-driver-pinning-595": "595.58.03-1"})))
        assert choose(driver, None, Offer(frozenset(packages), BRANCHES)).branch == "595"

    @pytest.mark.parametrize(
        "node",
        [debian(packages=installed(DEBIAN_PACKAGES)), ubuntu(packages=installed(UBUNTU_PACKAGES))],
        ids=["debian", "ubuntu"],
    )
    def test_a_node_that_has_all_lacks_nothing(self, node):
        driver = parse(node)
        assert choose(driver, None, of_node(driver)).lacking == ()
        assert choose(driver, "595", of_node(driver)).lacking

    def test_modules_of_another_branch_are_lacking(self):
        packages = DEBIAN_PACKAGES | {"nvidia-kernel-open-dkms": "595.58.03-1"}
        driver = parse(debian(packages=installed(packages)))
        assert choose(driver, None, of_node(driver)).lacking == ("nvidia-kernel-open-dkms",)

    def test_debians_own_driver_is_another_branch(self):
        driver = parse(debian(packages=installed({"libcuda1": "550.163.01-2", "nvidia-kernel-dkms": "550.163.01-2"})))
        assert of_node(driver).branches == ("550",)
        assert choose(driver, None, of_node(driver)).lacking


def test_what_apt_says_is_understood():
    said = {
        "names": "nvidia-headless-no-dkms-580-server-open\nnvidia-headless-no-dkms-595-open\nnvidia-smi\n",
        "versions": " nvidia-driver-cuda | 610.43.02-1 | https://repo  Packages\n",
    }
    assert of_apt(said).branches == ("610", "595", "580")


def test_archives_without_contrib():
    driver, mirror = parse(debian()), "http://mirror.home.arpa/debian/"
    lines = f"main trixie {mirror}\nmain trixie-updates {mirror}\n"
    archives = [("trixie", mirror), ("trixie-updates", mirror)]
    assert suites_without_contrib(driver, {"components": lines}) == archives
    lines += lines.replace("main", "contrib") + " / https://developer.download.nvidia.com/x/\n"
    assert suites_without_contrib(driver, {"components": lines}) == []
    assert suites_without_contrib(parse(ubuntu()), {"components": f"main noble {mirror}\n"}) == []


def test_the_driver_is_held_and_on_ubuntu_the_kernels_that_it_goes_with():
    assert kept(parse(debian(packages=installed(DEBIAN_PACKAGES))), "580") == sorted(DEBIAN_HELD)
    assert kept(parse(ubuntu(packages=installed(UBUNTU_PACKAGES))), "580") == sorted(UBUNTU_HELD)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (debian(pci=card() + card("0000:c1:00.0", PASCAL)), ["0000:c1:00.0 (device 1b06)", "nvidia.driver: 'keep'"]),
        (debian(run_file="/usr/bin/nvidia-uninstall\n"), [".run installer", "`nvidia-uninstall`"]),
        (
            ubuntu(packages=installed({"nvidia-driver-580-open": "580.95.05-0ubuntu1", "nvidia-modprobe": "1.0-1"})),
            ["apt-get purge nvidia-driver-580-open`", "NVIDIA's repository"],
        ),
    ],
    ids=["old card", "run file", "two origins"],
)
def test_no_driver_is_put_over_something_else(node, words):
    with pytest.raises(DriverError) as caught:
        check(parse(node))
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["0x1e02", BLACKWELL])
def test_turing_and_later_may_have_it(device):
    check(parse(debian(pci=card(device=device))))
    check(parse(ubuntu(pci=card(device=device), packages=installed(UBUNTU_PACKAGES))))
