"""The container toolkit: what is installed from where, what Podman can read, and what is refused."""

import pytest
from pyinfra.facts.deb import DebPackages

from moehost import settings
from roles.facts import FileStates, MissingPackages, SourceState
from roles.nvidia_container_toolkit.facts import ENV, ContainerToolkit, PackageVersions
from roles.nvidia_container_toolkit.operations import KEY, source, toolkit
from roles.operations import file_state, render
from tests.operations.plain import in_turn, play

RUN, ETC = "/var/run/cdi/nvidia.yaml", "/etc/cdi/nvidia.yaml"
PROGRAM = "/usr/local/libexec/moehost/cdi-fresh"
BASE, WHOLE = "nvidia-container-toolkit-base", "nvidia-container-toolkit"
FLAG = "NVIDIA_CTK_CDI_GENERATE_FEATURE_FLAGS=no-additional-gids-for-device-nodes\n"
VENDORS = "# ENVVAR=value\n"
ALL = [BASE, WHOLE, "libnvidia-container-tools", "libnvidia-container1"]
REFRESH = [
    "systemctl daemon-reload",
    "systemctl reset-failed nvidia-cdi-refresh.service 2>/dev/null; "
    "systemctl restart nvidia-cdi-refresh.service || true",
]
ENABLE = (
    "systemctl enable --quiet --now nvidia-cdi-refresh.path && systemctl enable --quiet nvidia-cdi-refresh.service"
)
UPDATE = "apt-get update"


def spec(path=RUN, version="0.5.0", driver="580.95.05", kind="nvidia.com/gpu"):
    """A specification as the fact has it."""
    return f'={path}\ncdiVersion: {version}\nkind: {kind}\nlibcuda.so.{driver}\nname: "0\nname: all\n'


def node(podman="5.4.2", packages=(BASE,), version="1.20.0-1", env=VENDORS, specs=None, **more):
    """What a node says; without packages it has no units either."""
    texts = {
        "cards": "/sys/bus/pci/devices/0000:41:00.0/vendor\n",
        "podman": f"podman version {podman}\n" if podman else "",
        "packages": "".join(f"installed {each} {version}\n" for each in packages),
        "ctk": f"NVIDIA Container Toolkit CLI version {version.partition('-')[0]}\n" if packages else "",
        "env": env if packages else "",
        "units": "enabled\nenabled\nactive\n" if packages else "",
        "module": "580.95.05\n",
        "specs": spec() if specs is None else specs,
    }
    return texts | more


def run(*states, has_files=True, offered=None, **nvidia):
    """What is done on a node that says this, one after the other, whenever it is looked at; and why no more is."""
    wish = settings.read({"nvidia": nvidia}).nvidia
    repository = source(wish)
    written = {
        repository.keyring: ["0" * 64, "644", "root:root"],
        repository.preferences_path: file_state(repository.preferences),
        repository.path: file_state(render("apt/source.j2", source=repository)),
        PROGRAM: file_state(render("nvidia_container_toolkit/cdi-fresh.j2"), "755"),
    }
    there = written if has_files else {}
    facts = {
        ContainerToolkit: in_turn(*states),
        SourceState: {"files": there, "keys": [repository.fingerprint] if has_files else [], "naming": {}},
        FileStates: lambda paths: {path: there[path] for path in paths if path in there},
        MissingPackages: lambda packages: [each for each in packages if each == "podman"],
        DebPackages: {},
        PackageVersions: in_turn(*(offered or [{each: ["1.21.0-1", "1.20.0-1", "1.18.2-1"] for each in ALL}])),
    }
    commands, noops = play(toolkit, facts, nvidia=wish)
    return [each["command"] if isinstance(each, dict) else each for each in commands], noops, commands


def refusal(*states, **more):
    """The last thing that is said, and how many commands there were before."""
    commands, *_ = run(*states, **more)
    name, (reason,), _ = commands[-1]
    assert name == "_refused"
    return reason, len(commands) - 1


def places(commands):
    """Paths of the files that are written."""
    return [each.split()[-1] for each in commands if each.startswith("install -D")]


def installed(commands):
    """What apt installs, and how."""
    return [each.partition(" install ")[2].split() for each in commands if " install --no" in each]


def test_a_machine_without_a_card():
    assert run(node(cards=""))[:2] == ([], ["no NVIDIA card in this machine: no container toolkit"])


@pytest.mark.parametrize("podman", ["4.3.1", "4.9.3", "5.4.2"])
def test_the_second_run_changes_nothing(podman):
    env = VENDORS if podman == "5.4.2" else VENDORS + FLAG
    commands, noops, _ = run(node(podman, env=env))
    assert commands == []
    assert noops[-1] == f"{RUN}: CDI 0.5.0, driver 580.95.05"


class TestFreshNode:
    def test_all_steps_in_order(self):
        bare, full = node("", [], specs=""), node("4.9.3")
        # Podman is there after the first look, and the toolkit after the second.
        commands, _, raw = run(
            bare, node("4.9.3", [], specs=""), node("4.9.3", specs="", units="disabled\ndisabled\ninactive\n"), full,
            has_files=False, offered=[{}, {BASE: ["1.20.0-1"]}],
        )  # fmt: skip
        assert commands[0] == UPDATE
        assert installed(commands) == [
            ["--no-install-recommends", "podman"],
            ["--no-install-recommends", "--allow-downgrades", f"{BASE}=1.20.0-1"],
        ]
        key, keyring = "https://nvidia.github.io/libnvidia-container/gpgkey", "moehost-container-toolkit.gpg"
        assert commands[2] == f"sh -s -- {key} {KEY} /usr/share/keyrings/{keyring}"
        assert places(commands) == [
            "/etc/apt/preferences.d/60-moehost-container-toolkit",
            "/etc/apt/sources.list.d/moehost-container-toolkit.sources",
            PROGRAM,
            ENV,
        ]
        texts = {each["command"].split()[-1]: each["_stdin"] for each in raw if isinstance(each, dict)}
        assert texts[ENV] == VENDORS + FLAG
        uri = "https://nvidia.github.io/libnvidia-container/stable/deb/amd64"
        assert f"\nURIs: {uri}\nSuites: /\nSigned-By: /usr/share/keyrings/{keyring}\n" in next(
            text for path, text in texts.items() if path.endswith(".sources")
        )
        assert commands[-3:] == [ENABLE, *REFRESH]

    def test_the_preferences_let_four_packages_in_in_one_version(self):
        text = source(settings.read({}).nvidia).preferences
        assert f"\nPackage: {' '.join(ALL)}\nPin: version 1.20.0-1\nPin-Priority: 1001\n" in text
        assert "\nPackage: *\nPin: release o=https://nvidia.github.io/libnvidia-container\nPin-Priority: -1\n" in text

    def test_a_mirror_with_a_key_of_its_own(self):
        wish = {"toolkit_repository": "http://mirror.home.arpa/nvidia/stable/deb/", "toolkit_key": "A" * 40}
        mirror = source(settings.read({"nvidia": wish}).nvidia)
        assert mirror.uri == "http://mirror.home.arpa/nvidia/stable/deb/amd64"
        assert (mirror.key_url, mirror.fingerprint) == ("http://mirror.home.arpa/nvidia/gpgkey", "A" * 40)


class TestPackages:
    @pytest.mark.parametrize("version", ["1.18.2-1", "1.21.0-1"])
    def test_another_version_is_replaced(self, version):
        commands, *_ = run(node(version=version), node())
        assert installed(commands) == [["--no-install-recommends", "--allow-downgrades", f"{BASE}=1.20.0-1"]]

    def test_what_is_there_of_the_others_gets_the_same_version(self):
        commands, *_ = run(node(packages=ALL, version="1.18.2-1"), node(packages=ALL))
        assert installed(commands)[0][2:] == [f"{each}=1.20.0-1" for each in ALL]

    def test_other_runtimes_get_the_whole(self):
        commands, *_ = run(node(), node(packages=ALL), container_runtimes=["docker"])
        assert installed(commands)[0][2:] == [f"{each}=1.20.0-1" for each in ALL]

    def test_a_version_that_apt_does_not_have(self):
        offered = [{BASE: ["1.21.0-1"]}, {BASE: ["1.21.0-1", "1.18.2-1"]}]
        assert refusal(node(packages=[]), offered=offered) == (
            f"nvidia.toolkit_version: apt has no {BASE} 1.20.0-1; versions of {BASE} that it has: 1.21.0-1, 1.18.2-1",
            1,
        )

    def test_a_repository_that_says_nothing(self):
        reason, _ = refusal(node(packages=[]), offered=[{}])
        assert reason.endswith("that it has: none, see what `apt-get update` says")


class TestSpecification:
    def test_an_old_podman_gets_the_flag_and_a_specification_that_it_can_read(self):
        commands, _, raw = run(node("4.9.3", specs=spec(version="0.7.0")), *[node("4.9.3")] * 2)
        assert [places(commands), commands[1:]] == [[ENV], REFRESH]
        assert raw[0]["_stdin"] == VENDORS + FLAG

    def test_a_newer_podman_loses_it(self):
        commands, _, raw = run(node("5.4.2", env=VENDORS + FLAG))
        assert [places(commands), commands[1:]] == [[ENV], REFRESH]
        assert raw[0]["_stdin"] == VENDORS

    def test_a_toolkit_without_groups_needs_no_flag(self):
        assert run(node("4.9.3", version="1.18.2-1"), toolkit_version="1.18.2-1")[0] == []

    @pytest.mark.parametrize(
        "specs",
        ["", spec(driver="570.133.07"), spec(path=ETC, driver="570.133.07")],
        ids=["absent", "stale", "by hand"],
    )
    def test_one_that_does_not_fit_is_refreshed(self, specs):
        assert run(node(specs=specs), node(specs=specs), node())[0] == REFRESH

    def test_a_run_that_was_cut_off_after_the_flag(self):
        before = node("4.9.3", env=VENDORS + FLAG, specs=spec(version="0.7.0"))
        assert run(before, before, node("4.9.3"))[0] == REFRESH

    def test_a_run_that_was_cut_off_before_the_units(self):
        assert run(node(units="disabled\nenabled\ninactive\n"))[0] == [ENABLE]

    @pytest.mark.parametrize(
        ("state", "why"),
        [
            ({"specs": ""}, "there is no CDI specification of nvidia.com/gpu"),
            (
                {"specs": spec(driver="570.133.07")},
                f"{RUN} is of driver 570.133.07, and the module that is loaded is 580.95.05",
            ),
            ({"specs": spec(version="1.1.0")}, f"{RUN} is of CDI 1.1.0, and Podman 5.4.2 reads up to 0.8.0"),
            ({"specs": spec().replace("name: all\n", "")}, f"{RUN} has no device nvidia.com/gpu=all"),
            ({"module": ""}, "the driver's module is not loaded, so no CDI fits"),
        ],
    )
    def test_one_that_does_not_fit_after_a_refresh_is_refused(self, state, why):
        reason, before = refusal(node(**state))
        assert reason == f"{why}, after a refresh; see: journalctl -u nvidia-cdi-refresh.service"
        assert before == len(REFRESH)


class TestOthers:
    MOVED = f"mv --backup=numbered -T {ETC} {ETC}.replaced-by-moehost"

    @pytest.mark.parametrize("driver", ["570.133.07", "580.95.05"])
    def test_one_that_was_made_by_hand_is_laid_aside(self, driver):
        assert run(node(specs=spec(ETC, driver=driver) + spec()))[0] == [self.MOVED]

    def test_but_not_before_there_is_a_fresh_one(self):
        by_hand = spec(ETC, driver="570.133.07")
        commands, *_ = run(node(specs=by_hand), node(specs=by_hand), node(specs=by_hand + spec()))
        assert commands == [*REFRESH, self.MOVED]
        reason, _ = refusal(node(specs=by_hand))
        assert reason.startswith(f"{ETC} is of driver 570.133.07")

    def test_other_kinds_are_left_alone(self):
        assert run(node(specs=spec("/etc/cdi/nic.yaml", kind="home.arpa/nic") + spec()))[0] == []

    @pytest.mark.parametrize("path", ["/etc/cdi/cards.yaml", "/var/run/cdi/cards.json"])
    def test_two_of_which_none_is_ours_to_move(self, path):
        reason, before = refusal(node(specs=spec(path) + spec()), has_files=False)
        assert reason.startswith(f"{RUN} and {path} would both describe nvidia.com/gpu")
        assert before == 0

    def test_one_that_somebody_else_makes_before_ours_is_there(self):
        reason, _ = refusal(node(specs=spec("/etc/cdi/cards.yaml")))
        assert reason.startswith(f"{RUN} and /etc/cdi/cards.yaml would both")


@pytest.mark.parametrize(("podman", "why"), [("3.4.4", "knows no CDI"), ("4.2.1", "reads CDI up to 0.4.0")])
def test_a_podman_that_no_flag_helps_is_refused_before_anything_is_touched(podman, why):
    reason, before = refusal(node(podman, []), has_files=False)
    assert reason.startswith(f"Podman {podman} {why}")
    assert before == 0
