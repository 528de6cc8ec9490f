"""Podman, container toolkit and CDI specification: what fits what, what is said of each state, and what mends it."""

from dataclasses import replace

import pytest

from moehost import cdi, container_runtimes
from moehost.cdi import CdiError, Specification, Toolkit
from moehost.finding import Finding

RUN, ETC = "/var/run/cdi/nvidia.yaml", "/etc/cdi/nvidia.yaml"
FRESH = Specification(RUN, "0.5.0", "nvidia.com/gpu", ("0", "all"), ("580.95.05",))
STALE = replace(FRESH, drivers=("570.133.07",))
GOOD = Toolkit(2, "4.9.3", {}, "1.20.0", "", "580.95.05", (FRESH,))
FLAG = "NVIDIA_CTK_CDI_GENERATE_FEATURE_FLAGS=no-additional-gids-for-device-nodes\n"
VENDORS = "# This file can be used to override the configuration\n# NVIDIA_DRIVER_ROOT=/\n"


@pytest.mark.parametrize(
    ("podman", "cdi_version"),
    [
        ("3.4.4", (0, 0)),
        ("4.0.3", (0, 0)),
        ("4.2.1", (0, 4)),
        ("4.3.1", (0, 5)),
        ("4.6.2", (0, 5)),
        ("4.9.3", (0, 6)),
        ("5.0.3", (0, 6)),
        ("5.1.0", (0, 7)),
        ("5.4.2", (0, 8)),
        ("5.8.2", (1, 0)),
        ("", (0, 0)),
    ],
)
def test_what_each_podman_reads(podman, cdi_version):
    assert cdi.readable(podman) == cdi_version


@pytest.mark.parametrize(
    ("podman", "toolkit", "needs_flag"),
    [
        ("4.3.1", "1.18.2-1", False),
        ("4.3.1", "1.19.0-1", True),
        ("4.3.1", "1.20.0-1", True),
        ("4.9.3", "1.18.2-1", False),
        ("4.9.3", "1.20.0-1", True),
        ("5.0.3", "1.20.0-1", True),
        ("5.1.0", "1.20.0-1", False),
        ("5.4.2", "1.20.0-1", False),
        ("5.4.2", "1.18.2-1", False),
    ],
)
def test_groups_of_device_nodes_are_left_out_for_a_podman_that_can_not_read_them(podman, toolkit, needs_flag):
    assert cdi.needs_flag(podman, toolkit) == needs_flag


@pytest.mark.parametrize(
    ("podman", "why"),
    [
        ("3.4.4", "Podman 3.4.4 knows no CDI: "),
        ("4.2.1", "Podman 4.2.1 reads CDI up to 0.4.0, and NVIDIA's toolkit writes 0.5.0: "),
        ("", "Podman (none) knows no CDI: "),
    ],
)
def test_a_podman_that_no_flag_helps(podman, why):
    with pytest.raises(CdiError) as error:
        cdi.needs_flag(podman, "1.20.0-1")
    assert str(error.value) == (
        f"{why}containers can't have the cards; install Podman 4.3 or later, or let the services run with runtime: "
        "'native'"
    )


@pytest.mark.parametrize(
    ("version", "holes"),
    [
        ("1.16.1-1", 3),
        ("1.16.2-1", 2),
        ("1.17.3-1", 2),
        ("1.17.4-1", 1),
        ("1.17.7-1", 1),
        ("1.17.8-1", 0),
        ("1.20.0~rc.1-1", 0),
    ],
)
def test_known_holes(version, holes):
    assert len(cdi.holes(version)) == holes


def test_versions_that_are_not_to_be_installed():
    assert cdi.version_refusal("1.17.7-1") == (
        "'1.17.7-1' has CVE-2025-23266 and CVE-2025-23267: an image can take over the host; write 1.20.0-1, or "
        "1.18.0-1 or later"
    )
    assert "no nvidia-cdi-refresh.service" in cdi.version_refusal("1.17.8-1")
    assert cdi.version_refusal("1.18.0-1") is None
    assert cdi.version_refusal("1.20.0-1") is None


class TestRefreshEnv:
    def test_the_flag_is_added_to_what_is_there(self):
        assert cdi.refresh_env(VENDORS, True) == VENDORS + FLAG
        assert cdi.refresh_env("", True) == FLAG

    @pytest.mark.parametrize("needs_flag", [True, False])
    def test_a_file_that_is_right_stays_as_it_is(self, needs_flag):
        text = VENDORS + (FLAG if needs_flag else "")
        assert cdi.refresh_env(text, needs_flag) == text

    def test_the_flag_goes_when_podman_can_do_without(self):
        assert cdi.refresh_env(VENDORS + FLAG, False) == VENDORS

    @pytest.mark.parametrize("value", ["disable-nvsandbox-utils", '"disable-nvsandbox-utils"'])
    def test_other_flags_of_the_owner_stay(self, value):
        name, _, flag = FLAG.strip().partition("=")
        text = cdi.refresh_env(f"{name}={value}\nNVIDIA_DRIVER_ROOT=/\n", True)
        assert text == f"NVIDIA_DRIVER_ROOT=/\n{name}=disable-nvsandbox-utils,{flag}\n"
        assert cdi.refresh_env(text, False) == f"NVIDIA_DRIVER_ROOT=/\n{name}=disable-nvsandbox-utils\n"

    def test_of_two_assignments_the_last_counts(self):
        assert cdi.refresh_env(f"{FLAG}{FLAG.partition('=')[0]}=a\n", True).endswith(
            "=a,no-additional-gids-for-device-nodes\n"
        )


def errors(toolkit):
    return [(each.says, each.fix) for each in cdi.findings(toolkit) if each.level == "error"]


def test_a_machine_without_a_card_has_no_findings():
    assert cdi.findings(replace(GOOD, cards=0)) == []


def test_all_is_well():
    assert cdi.findings(GOOD) == [
        Finding("podman", "ok", "Podman 4.9.3 reads CDI up to 0.6.0"),
        Finding("cdi", "ok", "NVIDIA's container toolkit 1.20.0"),
        Finding("cdi", "ok", f"{RUN}: CDI 0.5.0, driver 580.95.05"),
    ]


def test_a_bare_machine():
    bare = Toolkit(1, "", {}, "", "", "", ())
    assert errors(bare) == [
        ("Podman is not installed", "apt-get install podman"),
        ("NVIDIA's container toolkit is not installed", "pyinfra inventory deploy.py"),
        ("the driver's module is not loaded, so no CDI fits", "modprobe nvidia"),
    ]


@pytest.mark.parametrize(
    ("change", "says", "fix"),
    [
        ({"podman": "4.2.1"}, "Podman 4.2.1 reads CDI up to 0.4.0", "install Podman 4.3 or later"),
        ({"specifications": ()}, "there is no CDI specification of nvidia.com/gpu", cdi.REFRESH),
        (
            {"specifications": (replace(FRESH, version="0.7.0"),)},
            f"{RUN} is of CDI 0.7.0, and Podman 4.9.3 reads up to 0.6.0",
            cdi.DEPLOY,
        ),
        ({"specifications": (replace(FRESH, version=""),)}, f"{RUN} is of CDI no version", cdi.DEPLOY),
        (
            {"specifications": (STALE,)},
            f"{RUN} is of driver 570.133.07, and the module that is loaded is 580.95.05",
            cdi.REFRESH,
        ),
        (
            {"specifications": (replace(FRESH, drivers=("570.133.07", "580.95.05")),)},
            f"{RUN} is of driver 570.133.07, 580.95.05, and",
            cdi.REFRESH,
        ),
        ({"specifications": (replace(FRESH, drivers=()),)}, f"{RUN} is of driver none, and", cdi.REFRESH),
        (
            {"specifications": (replace(FRESH, devices=("0",)),)},
            f"{RUN} has no device nvidia.com/gpu=all",
            "take NO_ALL",
        ),
        ({"module": ""}, "the driver's module is not loaded", "modprobe nvidia"),
    ],
)
def test_what_keeps_containers_from_the_cards(change, says, fix):
    found = errors(replace(GOOD, **change))
    assert found[0][0].startswith(says)
    assert found[0][1].startswith(fix)


@pytest.mark.parametrize("podman", ["5.1.0", "5.4.2"])
def test_a_newer_podman_reads_groups(podman):
    assert errors(replace(GOOD, podman=podman, specifications=(replace(FRESH, version="0.7.0"),))) == []


@pytest.mark.parametrize(
    ("ctk", "says"),
    [
        (
            "1.16.1",
            "1.16.1 has CVE-2024-0132, CVE-2025-23359, CVE-2025-23266 and CVE-2025-23267: an image can take over",
        ),
        ("1.17.8", "1.17.8 does not keep the CDI specification fresh"),
    ],
)
def test_a_toolkit_that_somebody_has_installed(ctk, says):
    (warning,) = [each for each in cdi.findings(replace(GOOD, ctk=ctk)) if each.level == "warning"]
    assert warning.says.startswith(f"NVIDIA's container toolkit {says}")
    assert warning.fix == cdi.DEPLOY


def test_a_specification_made_by_hand_is_hidden_by_the_fresh_one():
    by_hand = replace(STALE, path=ETC)
    both = replace(GOOD, specifications=(by_hand, FRESH))
    assert (both.strays, both.rivals) == ((by_hand,), ())
    assert errors(both) == []
    says = f"{ETC} describes the cards, too, beside {RUN}, and nobody keeps it fresh"
    assert cdi.findings(both)[-1] == Finding("cdi", "warning", says, f"mv {ETC} {ETC}.off")


def test_a_specification_made_by_hand_is_what_podman_takes_until_there_is_a_fresh_one():
    alone = replace(GOOD, specifications=(replace(STALE, path=ETC),))
    assert errors(alone) == [
        (f"{ETC} is of driver 570.133.07, and the module that is loaded is 580.95.05", cdi.REFRESH)
    ]


def test_of_two_in_one_folder_podman_takes_neither():
    other = replace(FRESH, path="/var/run/cdi/cards.json")
    both = replace(GOOD, specifications=(other, FRESH))
    assert (both.strays, both.rivals) == ((), (other,))
    assert len(errors(both)) == 1


def test_other_kinds_are_left_alone():
    others = [
        replace(STALE, path="/etc/cdi/nic.yaml", kind=kind) for kind in ("home.arpa/nic", "management.nvidia.com/gpu")
    ]
    found = replace(GOOD, specifications=(*others, FRESH))
    assert (found.strays, found.rivals) == ((), ())
    assert cdi.findings(found) == cdi.findings(GOOD)


def test_the_refresh_may_write_elsewhere():
    elsewhere = replace(GOOD, env=f'{VENDORS}NVIDIA_CTK_CDI_OUTPUT_FILE_PATH="{ETC}"\n')
    assert (GOOD.output, elsewhere.output) == (RUN, ETC)
    assert replace(elsewhere, specifications=(replace(FRESH, path=ETC),)).strays == ()


class TestDocker:
    @pytest.mark.parametrize("text", ["", "{}", '{"features": {}}'])
    def test_cdi_is_switched_on(self, text):
        assert container_runtimes.docker_config(text) == '{\n    "features": {\n        "cdi": true\n    }\n}\n'

    def test_what_else_there_is_stays(self):
        text = '{"data-root": "/srv/docker", "features": {"containerd-snapshotter": true, "cdi": false}}\n'
        assert container_runtimes.docker_config(text).split() == [
            *("{", '"data-root":', '"/srv/docker",'),
            *('"features":', "{", '"containerd-snapshotter":', "true,", '"cdi":', "true", "}", "}"),
        ]

    def test_what_is_right_stays_as_it_is(self):
        text = '{"features":{"cdi":true}}'
        assert container_runtimes.docker_config(text) == text

    @pytest.mark.parametrize("text", ["{", "[]", '{"features": 1}', "null"])
    def test_what_is_no_configuration_is_refused(self, text):
        with pytest.raises(CdiError, match=r"daemon[.]json is not the object"):
            container_runtimes.docker_config(text)


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ("docker", "Docker version 28.3.1, build 38b7060"),
        ("docker", "Docker version 26.1.5+dfsg1, build a72d7cd"),
        ("containerd", "containerd containerd.io 1.7.27 05044ec0a9a7523e54bf3b5d8a1d1b6a"),
        (
            "containerd",
            "containerd github.com/containerd/containerd/v2 v2.0.5 fb4c30d4ede3531652d86197bf3fc9515e5276d9",
        ),
    ],
)
def test_runtimes_that_know_cdi(runtime, said):
    container_runtimes.check(runtime, said)


@pytest.mark.parametrize(
    ("runtime", "said", "why"),
    [
        ("docker", "", "Docker is not installed; install it, or take 'docker' out"),
        ("docker", "podman version 4.9.3", "Docker is not installed"),
        ("docker", "Docker version 20.10.24+dfsg1, build 297e128", "Docker 20.10 knows no CDI, 25.0 and later do"),
        (
            "containerd",
            "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1",
            "containerd 1.6 knows no CDI, 1.7 and later do; upgrade it, or take 'containerd' out",
        ),
    ],
)
def test_runtimes_that_do_not(runtime, said, why):
    with pytest.raises(CdiError) as error:
        container_runtimes.check(runtime, said)
    assert str(error.value).startswith(f"nvidia.container_runtimes: {why}")
