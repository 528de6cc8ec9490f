"""NVIDIA's driver: from a fresh machine to one that is loaded and held, cut-off runs, refusals, reboots."""

from typing import ClassVar

import pytest
from pyinfra.facts.deb import DebPackages
from pyinfra.facts.server import Uptime

from moehost.settings import read
from moehost.settings_engine import CUDA_REPOSITORY
from roles.facts import FileStates, MissingPackages, SourceState
from roles.nvidia_driver import facts
from roles.nvidia_driver.operations import driver
from roles.operations import render
from tests.fixtures.driver import (
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
from tests.operations.plain import in_turn, play, sha256

UPDATE = "apt-get update"
INSTALL = "apt-get -y"
HEADERS = "linux-headers-amd64"
PINNING = "nvidia-driver-pinning-580"
DEBIAN = [PINNING, "nvidia-driver-cuda", "nvidia-kernel-open-dkms", HEADERS, "nvidia-persistenced", "nvidia-modprobe"]
MODULES = "linux-modules-nvidia-580-server-open"
UBUNTU = ["nvidia-headless-no-dkms-580-server-open", "nvidia-utils-580-server", "nvidia-compute-utils-580-server"]
PREFERENCES = render("nvidia_driver/driver.preferences.j2", branch="580")
NEW = "6.12.60+deb13-amd64"


def states(branch="580", has_source=True):
    """The files of this role, as the fact has them, with nothing to change."""
    contents = {
        facts.NOUVEAU: render("nvidia_driver/nouveau.conf.j2"),
        facts.MODULES: render("nvidia_driver/modules.conf.j2"),
    }
    if has_source:
        contents[facts.PREFERENCES] = render("nvidia_driver/driver.preferences.j2", branch=branch)
    return "".join(f"{sha256(text)} 644 root:root {path}\n" for path, text in contents.items())


def source(folder="debian13", fingerprint="02182E60104FCDC26EAE1B8597A5D4CB8793F200"):
    """NVIDIA's source, there and as it should be."""
    text = (
        f"# Managed by moehost.\nTypes: deb\nURIs: {CUDA_REPOSITORY}/{folder}/x86_64\nSuites: /\n"
        "Signed-By: /usr/share/keyrings/moehost-cuda.gpg\n"
    )
    preferences = sha256(render("ik_llama/cuda.preferences.j2"))
    return SourceState.default() | {
        "keys": [fingerprint],
        "files": {
            "/usr/share/keyrings/moehost-cuda.gpg": ["0" * 64, "644", "root:root"],
            "/etc/apt/preferences.d/60-moehost-cuda": [preferences, "644", "root:root"],
            "/etc/apt/sources.list.d/moehost-cuda.sources": [sha256(text), "644", "root:root"],
        },
    }


def apt_has(names=(), versions=("580.95.05-1",), components="main trixie http://mirror.home.arpa/\n"):
    """What the fact Offer says of an apt with these packages."""
    madison = "".join(f" nvidia-driver-cuda | {version} | {CUDA_REPOSITORY}  Packages\n" for version in versions)
    return {"names": "\n".join(names), "versions": madison, "components": components}


class Run:
    """One deploy of the role to a node that is in these states, one after the other."""

    settings: ClassVar = {}

    def __init__(self, *nodes, offers=None, unmet=None, has_source=True, naming=None, **settings):
        self.asked = []
        answers = {
            facts.Driver: in_turn(*nodes),
            facts.Offer: in_turn(*(offers or [apt_has(DEBIAN)])),
            facts.Unmet: in_turn(*(unmet or [[]])),
            SourceState: (source() if has_source else SourceState.default()) | {"naming": naming or {}},
            FileStates: {},
            DebPackages: {},
            MissingPackages: [],
            Uptime: 100,
        }
        counted = {fact: self._counted(fact, answer) for fact, answer in answers.items()}
        self.commands, self.noops = play(driver, counted, node=read(settings))

    def _counted(self, fact, answer):
        def ask(**arguments):
            self.asked.append(fact)
            return answer(**arguments) if callable(answer) else answer

        return ask

    @property
    def lines(self):
        """Commands without what they read."""
        return [each["command"] if isinstance(each, dict) else each for each in self.commands]

    @property
    def installs(self):
        """The packages of each installation."""
        ours = [each for each in self.lines if isinstance(each, str) and INSTALL in each]
        assert all(
            "--no-install-recommends --allow-downgrades --allow-change-held-packages " in each for each in ours
        )
        return [each.partition("--allow-change-held-packages ")[2].split() for each in ours]

    @property
    def written(self):
        """The files that are written, and what is in them."""
        return {
            each["command"].rpartition(" ")[2]: each["_stdin"]
            for each in self.commands
            if isinstance(each, dict) and "install -D" in each["command"]
        }

    @property
    def refusal(self):
        """The line with which the node is refused."""
        name, (reason,), _ = self.commands[-1]
        assert name == "_refused"
        assert "\n" not in reason
        return reason


def whole(**others):
    """A Debian 13 whose driver is installed and works."""
    return debian(
        packages=installed(DEBIAN_PACKAGES), holds="\n".join(DEBIAN_HELD), files=states(), **loaded(**others)
    )


def whole_ubuntu(**others):
    """An Ubuntu 24.04 whose driver is installed and works."""
    holds, files = "\n".join(UBUNTU_HELD), states(has_source=False)
    return ubuntu(packages=installed(UBUNTU_PACKAGES), holds=holds, files=files, **loaded(**others))


class TestWithoutACard:
    @pytest.mark.parametrize("driver", ["install", "keep"])
    def test_nothing_is_done_for_the_price_of_one_question(self, driver):
        run = Run(texts(system=TRIXIE), nvidia={"driver": driver})
        assert (run.commands, run.noops) == ([], ["no NVIDIA card on the PCI bus"])
        assert run.asked == [facts.Driver]

    def test_one_that_is_required_is_missed(self):
        assert Run(texts(), gpu="require").refusal.startswith("gpu: 'require', and there is no NVIDIA card")


class TestDebian:
    def test_a_fresh_node(self):
        after = debian(
            packages=installed(DEBIAN_PACKAGES),
            on_disk="580.95.05\n",
            licence="Dual MIT/GPL\n",
            persistenced="disabled\ninactive\n",
            files=states(),
            stale_initrds="6.12.57+deb13-amd64\n",
        )
        works = whole(persistenced="disabled\ninactive\n")
        run = Run(
            debian(), after, after, after, works, whole(), offers=[apt_has(), apt_has(DEBIAN)], has_source=False
        )
        assert run.lines[0].startswith(f"sh -s -- {CUDA_REPOSITORY}/debian13/x86_64/8793F200.pub 02182E60")
        assert list(run.written) == [
            "/etc/apt/preferences.d/60-moehost-cuda",
            "/etc/apt/sources.list.d/moehost-cuda.sources",
            facts.PREFERENCES,
            facts.NOUVEAU,
            facts.MODULES,
        ]
        assert run.written[facts.PREFERENCES] == PREFERENCES
        assert run.installs == [[PINNING], DEBIAN[1:]]
        # Lists first, then the pin, then what nouveau may do, then the driver.
        assert run.lines.index(UPDATE) < run.lines.index(next(each for each in run.lines if PINNING in str(each)))
        assert run.lines[-5:] == [
            f"apt-mark hold {' '.join(sorted(DEBIAN_HELD))}",
            "update-initramfs -u -k 6.12.57+deb13-amd64",
            "modprobe nvidia && modprobe nvidia_uvm",
            "systemctl enable nvidia-persistenced",
            "systemctl start nvidia-persistenced",
        ]
        assert run.noops[-1] == "driver 580.95.05 with open kernel modules, 1 card"

    def test_the_second_run_changes_nothing_and_asks_twice(self):
        run = Run(whole())
        assert run.commands == []
        assert run.asked == [facts.Driver, SourceState]

    def test_a_branch_that_the_repository_lacks_is_refused_with_those_it_has(self):
        offer = apt_has(DEBIAN, ["610.43.02-1", "595.58.03-1", "590.48.01-1"])
        reason = Run(debian(), offers=[offer], nvidia={"branch": "580"}).refusal
        assert reason.startswith(f"nvidia.branch: {CUDA_REPOSITORY}/debian13/x86_64 has no nvidia-driver-cuda, ")
        assert reason.endswith("of drivers it has 610, 595, 590")

    def test_without_a_branch_the_one_that_is_kept_up_comes(self):
        offer = apt_has([*DEBIAN, "nvidia-driver-pinning-595"], ["610.43.02-1", "595.58.03-1"])
        run = Run(debian(), whole(), offers=[offer])
        assert run.installs[0] == ["nvidia-driver-pinning-595"]
        assert "Pin: version 595.*\n" in run.written[facts.PREFERENCES]

    def test_a_component_that_is_missing_is_added(self):
        unmet = [["nvidia-kernel-open-dkms : Depends: nvidia-installer-cleanup but it is not installable"], []]
        key = "/usr/share/keyrings/debian-archive-keyring.gpg"
        debians = f"Types: deb\nURIs: http://mirror.home.arpa\nSuites: trixie\nComponents: main\nSigned-By: {key}\n"
        run = Run(debian(), whole(), unmet=unmet, naming={"/etc/apt/sources.list.d/debian.sources": debians})
        source = run.written["/etc/apt/sources.list.d/moehost-contrib.sources"]
        # With the key that the suite has already: with another, or with none, apt would read no source at all.
        assert f"Suites: trixie\nComponents: contrib\nSigned-By: {key}\n" in source
        assert run.installs == [[PINNING], DEBIAN[1:4]]

    def test_what_apt_cannot_install_is_refused_in_its_own_words(self):
        said = "nvidia-driver-cuda : Depends: libcuda1 (= 580.95.05-1) but 550.163.01-2 is to be installed"
        components = "main trixie http://mirror.home.arpa/\ncontrib trixie http://mirror.home.arpa/\n"
        run = Run(debian(), unmet=[[said]], offers=[apt_has(DEBIAN, components=components)])
        assert said in run.refusal
        assert facts.NOUVEAU not in run.written

    def test_another_branch_gives_way(self):
        others = {name: version.replace("580.95", "595.58") for name, version in DEBIAN_PACKAGES.items()}
        others["nvidia-driver-pinning-595"] = others.pop(PINNING)
        before = debian(packages=installed(others), files=states("595"), **loaded("595.58.05"))
        after = whole(loaded="595.58.05\n", smi="Failed to initialize NVML: Driver/library version mismatch\n")
        run = Run(before, after, nvidia={"branch": "580"})
        assert run.installs == [[PINNING], DEBIAN[1:]]
        assert run.written[facts.PREFERENCES] == PREFERENCES
        assert run.refusal.startswith("driver/library version mismatch: 595.58.05 is loaded, and 580.95.05 installed")


class TestUbuntu:
    @pytest.mark.parametrize(
        ("flavour", "kernel"), [("generic", "6.8.0-51-generic"), ("generic-hwe-24.04", "6.17.0-41-generic")]
    )
    def test_a_fresh_node(self, flavour, kernel):
        names = [f"{MODULES}-{flavour}", *UBUNTU]
        run = Run(ubuntu(flavour, kernel), whole_ubuntu(), offers=[apt_has([*names, f"{MODULES}-{kernel}"], [])])
        # The running kernel's modules come, too, so that no reboot is needed.
        assert run.installs == [[*names, f"{MODULES}-{kernel}"]]
        assert list(run.written) == [facts.NOUVEAU, facts.MODULES]
        assert SourceState not in run.asked

    def test_modules_of_the_running_kernel_are_left_out_where_apt_cannot(self):
        names = [f"{MODULES}-generic", *UBUNTU]
        offer = apt_has([*names, f"{MODULES}-6.8.0-51-generic"], [], "")
        run = Run(ubuntu(), whole_ubuntu(), offers=[offer], unmet=[["some"], []])
        assert run.installs == [names]

    def test_the_second_run_changes_nothing_and_asks_once(self):
        run = Run(whole_ubuntu())
        assert (run.commands, run.asked) == ([], [facts.Driver])

    @pytest.mark.parametrize("has_modules", [True, False])
    def test_a_flavour_that_comes_later_gets_its_modules_if_apt_has_them(self, has_modules):
        hwe = "generic-hwe-24.04"
        two = whole_ubuntu()
        two["packages"] += installed({f"linux-image-{hwe}": "6.14.0-37.38"})
        two["holds"] += f"\nlinux-image-{hwe}"
        names = [f"{MODULES}-generic", f"{MODULES}-{hwe}", *UBUNTU]
        exact = f"{MODULES}-6.8.0-51-generic"
        run = Run(two, offers=[apt_has([*names, exact] if has_modules else [names[0], *UBUNTU, exact], [])])
        # Without any for it, the ones of the running kernel do, and a second run changes nothing.
        assert run.installs == ([[*names, exact]] if has_modules else [])

    def test_what_is_missing_in_the_archive_is_named(self):
        run = Run(ubuntu(), offers=[apt_has([], [])], nvidia={"branch": "580"})
        assert run.lines[0] == UPDATE
        assert "Ubuntu's archive has no linux-modules-nvidia-580-server-open-generic or " in run.refusal

    def test_secure_boot_is_no_matter(self):
        names = [f"{MODULES}-generic", *UBUNTU]
        run = Run(ubuntu(secure_boot="SecureBoot enabled\n"), whole_ubuntu(), offers=[apt_has(names, [])])
        assert run.installs == [names]


# What a run that was killed has left, and what the next one does.
CUT_OFF = {
    "before the holds": (whole() | {"holds": ""}, whole(), [f"apt-mark hold {' '.join(sorted(DEBIAN_HELD))}"]),
    "between the holds": (
        whole() | {"holds": "\n".join(DEBIAN_HELD[1:])},
        whole(),
        [f"apt-mark hold {DEBIAN_HELD[0]}"],
    ),
    "before the initrd": (
        whole() | {"stale_initrds": "6.1.0-1-amd64\n6.12.57+deb13-amd64\n"},
        whole(),
        ["update-initramfs -u -k 6.1.0-1-amd64", "update-initramfs -u -k 6.12.57+deb13-amd64"],
    ),
    "before it was loaded": (
        whole(loaded="", taint="", uvm="", smi=""),
        whole(),
        ["modprobe nvidia && modprobe nvidia_uvm"],
    ),
    "between the modules": (whole(uvm=""), whole(), ["modprobe nvidia_uvm"]),
    "before the daemon": (
        whole(persistenced="disabled\ninactive\n"),
        whole(),
        ["systemctl enable nvidia-persistenced", "systemctl start nvidia-persistenced"],
    ),
    "a static daemon": (
        whole(persistenced="static\ninactive\n"),
        whole(),
        ["systemctl start nvidia-persistenced"],
    ),
}


@pytest.mark.parametrize("state", CUT_OFF)
def test_what_a_run_left_undone_the_next_one_does(state):
    before, after, commands = CUT_OFF[state]
    run = Run(before, after)
    assert run.lines == commands
    assert run.noops[-1] == "driver 580.95.05 with open kernel modules, 1 card"


def test_a_driver_that_is_half_there_is_installed_whole():
    half = {name: DEBIAN_PACKAGES[name] for name in ("linux-image-amd64", HEADERS, PINNING)}
    run = Run(whole() | {"packages": installed(half), "loaded": "", "on_disk": ""}, whole())
    assert run.installs == [DEBIAN]
    assert run.written == {}


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (debian(pci=card(device=PASCAL)), "older than Turing"),
        (debian(run_file="/usr/bin/nvidia-uninstall\n"), "`nvidia-uninstall`"),
        (
            ubuntu(packages=installed({"nvidia-driver-580": "580.95.05-0ubuntu1"})),
            "`apt-get purge nvidia-driver-580`",
        ),
        (
            debian(system='ID=fedora\nVERSION_ID=43\nPRETTY_NAME="Fedora Linux 43"\n'),
            "moehost knows of no driver for Fedora Linux 43",
        ),
    ],
    ids=["old card", "run file", "two origins", "another system"],
)
def test_what_is_refused_is_not_touched(node, words):
    run = Run(node)
    assert words in run.refusal
    assert len(run.commands) == 1


class TestSecureBoot:
    ON: ClassVar = {"secure_boot": "SecureBoot enabled\n"}

    def test_the_key_is_made_and_the_rest_is_for_a_person(self):
        run = Run(debian(**self.ON, key="/var/lib/dkms/mok.pub is not enrolled\n"))
        assert "openssl req -new -x509" in run.lines[0]
        assert "`mokutil --import /var/lib/dkms/mok.pub`" in run.refusal
        assert (run.installs, run.written) == ([], {})

    def test_a_key_that_is_enrolled_will_do(self):
        run = Run(debian(**self.ON, key="/var/lib/dkms/mok.pub is already enrolled\n"), whole())
        assert run.installs == [[PINNING], DEBIAN[1:]]


REBOOT = "( sleep 1 && reboot ) </dev/null >/dev/null 2>&1 &"
KERNEL = "6.12.57+deb13-amd64"
UPGRADED = whole(on_disk="580.126.09\n", kernels=f"{KERNEL} /lib/modules/{KERNEL}/updates/dkms/nvidia.ko.xz\n")


class TestReboot:
    def test_is_asked_for(self):
        reason = Run(UPGRADED).refusal
        assert "580.95.05 is loaded, and 580.126.09 installed" in reason
        assert reason.endswith("`systemctl reboot`; allow_reboot: True lets a deploy reboot")

    def test_happens_where_it_is_allowed_and_mends(self):
        run = Run(UPGRADED, whole() | loaded("580.126.09"), allow_reboot=True)
        assert REBOOT in run.lines
        assert run.noops[-1] == "driver 580.126.09 with open kernel modules, 1 card"

    def test_that_mends_nothing_is_not_repeated(self):
        run = Run(UPGRADED, UPGRADED, allow_reboot=True)
        assert run.lines.count(REBOOT) == 1
        assert "allow_reboot" not in run.refusal

    @pytest.mark.parametrize("allow_reboot", [True, False])
    def test_never_happens_into_a_kernel_without_module(self, allow_reboot):
        kernels = f"{KERNEL} /lib/modules/{KERNEL}/updates/dkms/nvidia.ko.xz\n{NEW} \n"
        run = Run(UPGRADED | {"kernels": kernels}, allow_reboot=allow_reboot)
        assert REBOOT not in run.lines
        assert f"the kernel {NEW} is installed and has no NVIDIA module" in run.refusal
        assert f"`apt-get install linux-headers-{NEW} && dkms autoinstall -k {NEW}`" in run.refusal
        assert "allow_reboot" not in run.refusal

    def test_takes_the_card_from_nouveau(self):
        module = f"{KERNEL} /lib/modules/{KERNEL}/updates/dkms/nvidia.ko.xz\n"
        taken = whole(pci=card(taken_by="nouveau"), loaded="", taint="", uvm="", smi="", kernels=module)
        run = Run(taken, whole(), allow_reboot=True)
        assert REBOOT in run.lines
        assert not any("modprobe" in str(each) for each in run.lines)

    def test_is_no_matter_of_a_note_that_is_not_about_the_driver(self):
        run = Run(whole() | {"reboot_required": "linux-base\n"}, allow_reboot=True)
        assert run.commands == []


class TestKept:
    KEEP: ClassVar = {"nvidia": {"driver": "keep"}}

    def test_nothing_is_done_to_one_that_works(self):
        run = Run(debian(**loaded("570.211.01")), **self.KEEP)
        assert (run.commands, run.asked) == ([], [facts.Driver])
        assert run.noops == ["driver 570.211.01 with open kernel modules, 1 card"]

    @pytest.mark.parametrize(
        ("node", "words"),
        [
            (debian(), "no driver for the kernel"),
            (debian(**loaded(taint="POE\n", licence=CLOSED)), "the closed ones"),
            (debian(**loaded(uvm="")), "nvidia_uvm is not loaded"),
            (UPGRADED, "version mismatch"),
        ],
        ids=["none", "closed", "no uvm", "upgraded"],
    )
    def test_one_that_does_not_work_is_refused(self, node, words):
        run = Run(node, **self.KEEP)
        assert words in run.refusal
        assert len(run.commands) == 1

    def test_nouveau_would_have_the_card_again_after_a_reboot(self):
        module = f"{KERNEL} /lib/modules/{KERNEL}/updates/dkms/nvidia.ko.xz\n"
        run = Run(debian(pci=card(taken_by="nouveau"), kernels=module), allow_reboot=True, **self.KEEP)
        assert REBOOT not in run.lines
        assert "nouveau has the card" in run.refusal
