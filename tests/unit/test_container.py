"""A service in a container: its options in each version of Podman, and what must come out of a generator."""

import re
import shlex

import pytest

from moehost import container
from moehost.container import SINCE, arguments, difference, quadlet_lines, version
from tests.unit.test_unit import CONTAINERS, UNITS, service, values

# Keys that 4.9.3 has, of those that are used (pkg/systemd/quadlet/quadlet.go of its tag).
KEYS_OF_4_9 = {
    *("AddCapability", "AddDevice", "ContainerName", "DropCapability", "Environment", "Exec", "Image", "LogDriver"),
    *(
        "Network",
        "NoNewPrivileges",
        "PodmanArgs",
        "Pull",
        "ReadOnly",
        "Secret",
        "ShmSize",
        "Tmpfs",
        "Ulimit",
        "Volume",
    ),
}
SERVERS = UNITS | CONTAINERS
QUADLETS = {name: text for name, text in CONTAINERS.items() if name.endswith(".container")}


def section(text, name):
    """The lines of a section, as keys and values."""
    lines = text.partition(f"[{name}]\n")[2].partition("\n[")[0].splitlines()
    return [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("podman version 5.4.2", (5, 4)),
        ("podman version 4.9.3", (4, 9)),
        ("podman version 4.3.1", (4, 3)),
        ("", (0, 0)),
    ],
)
def test_versions(text, number):
    assert version(text) == number


@pytest.mark.parametrize("podman", [(4, 4), (4, 5), (4, 6), (4, 7), (4, 9), (5, 0), (5, 4)])
def test_a_version_gets_the_keys_that_it_knows_and_the_rest_as_arguments(podman):
    options = container.options(service(runtime="container"), "/srv/models/m", {"A": "1"}, 1)
    lines = quadlet_lines(options, podman)
    assert len(lines) == len(options)
    for option, line in zip(options, lines, strict=True):
        if podman >= SINCE.get(option.key, (4, 4)):
            assert line == f"{option.key}={option.value}"
        else:
            assert line == f"PodmanArgs={option.flag}={option.value}"


@pytest.mark.parametrize("text", QUADLETS.values(), ids=QUADLETS)
def test_ubuntus_podman_would_know_every_key_or_get_it_as_an_argument(text):
    keys = {key for key, _ in section(text, "Container")}
    assert keys - KEYS_OF_4_9 <= {"StopTimeout"}
    if text is CONTAINERS["gpus-4.9.container"]:
        assert "StopTimeout" not in keys
        assert ["PodmanArgs", f"--stop-timeout={container.STOP_S}"] in section(text, "Container")


@pytest.mark.parametrize("text", CONTAINERS.values(), ids=CONTAINERS)
def test_nothing_is_allowed_that_is_not_needed(text):
    for key, flag, value in (
        ("DropCapability", "--cap-drop", "all"),
        ("Pull", "--pull", "never"),
        ("Tmpfs", "--tmpfs", "/tmp:rw,size=1g,mode=1777"),
        ("Volume", "--volume", "/srv/models/Qwen3.5-397B-A17B-IQ4_NL:/srv/models/Qwen3.5-397B-A17B-IQ4_NL:ro"),
    ):
        assert f"\n{key}={value}\n" in text or f" {flag}={value} " in text
    assert "NoNewPrivileges=true" in text or "--security-opt=no-new-privileges" in text
    assert "ReadOnly=true" in text or " --read-only " in text


def test_the_cards_are_handed_over_where_the_plan_has_some():
    assert "\nAddDevice=nvidia.com/gpu=all\n" in CONTAINERS["gpus-5.4.container"]
    assert " --device=nvidia.com/gpu=all " in CONTAINERS["gpus-4.3.service"]
    assert "nvidia" not in CONTAINERS["cpu-5.4.container"]


def test_sys_nice_is_a_setting():
    assert "\nAddCapability=SYS_NICE\n" in CONTAINERS["gpus-5.4.container"]
    assert "AddCapability" not in CONTAINERS["gpus-4.9.container"]


@pytest.mark.parametrize("text", CONTAINERS.values(), ids=CONTAINERS)
def test_a_key_is_a_secret_and_in_no_argument(text):
    (line,) = re.findall(r"(?:Secret=|--secret=)(\S+)", text)
    assert line == "llama-server-qwen,type=mount,target=/run/secrets/api-keys,uid=10001,mode=0400"
    assert "--api-key-file /run/secrets/api-keys" in text
    assert values(text, "LoadCredential") == ["api-keys:/etc/moehost/qwen/api-keys"]


@pytest.mark.parametrize("text", SERVERS.values(), ids=SERVERS)
def test_both_runtimes_wait_for_the_same(text):
    """The gate, the checks before a start and the proof after it, the limits: as in a native unit."""
    native = UNITS["gpus" if "moehost-gpu" in text else "cpu"]
    before = [each.split()[0] for each in values(text, "ExecStartPre")]
    after = [each.split()[0].rpartition("/")[2] for each in values(text, "ExecStartPost") if "pages" not in each]
    assert before[0].endswith("/preflight")
    assert after == [each.split()[0].rpartition("/")[2] for each in values(native, "ExecStartPost")]
    for key in ("Restart", "StartLimitBurst", "MemorySwapMax", "OOMScoreAdjust", "LimitMEMLOCK", "LimitCORE", "Nice"):
        assert values(text, key) == values(native, key), key
    assert "SocketBindDeny=any" in text


@pytest.mark.parametrize("name", [name for name in CONTAINERS if "gpus" in name])
def test_a_container_comes_after_the_refresh_of_its_specification(name):
    text = CONTAINERS[name]
    assert values(text, "Requires") == ["moehost-gpu.service nvidia-cdi-refresh.service"]
    assert values(text, "Requires")[0] in values(text, "After")
    before = [each.rpartition("/")[2].split()[0] for each in values(text, "ExecStartPre")]
    assert before.index("cdi-fresh") < before.index("keys-secret")


def test_the_command_line_is_that_of_the_native_unit():
    words = {
        name: shlex.split(values(text, "Exec" if name.endswith("container") else "ExecStart")[0])
        for name, text in {"native": unit_without_template(UNITS["gpus"]), **CONTAINERS}.items()
    }
    native = [each.replace("%d/api-keys", container.KEYS_PATH) for each in words["native"][1:]]
    assert words["gpus-5.4.container"] == native
    assert words["gpus-4.9.container"] == native
    assert words["gpus-4.3.service"][-len(native) :] == native


def unit_without_template(text):
    """The golden unit has an argument more."""
    return re.sub(r' --chat-template-file "[^"]*"', "", text)


class TestGenerated:
    UNIT = '[Service]\nExecStart=/usr/bin/podman run --rm localhost/a:1 -m /m --alias a -ot "blk[.]1=CPU" --x "a b"\n'

    def test_the_words_after_the_image(self):
        words = ["-m", "/m", "--alias", "a", "-ot", "blk[.]1=CPU", "--x", "a b"]
        assert arguments(self.UNIT, "localhost/a:1") == words

    def test_a_unit_without_a_command_line_has_none(self):
        assert arguments("[Service]\nType=notify\n", "localhost/a:1") == []
        assert arguments(self.UNIT, "localhost/a:2") == []

    def test_what_has_become_of_a_word(self):
        assert difference(["-a", "b[.]c"], ["-a", "b.c"]) == "'b[.]c' has become 'b.c'"
        assert difference(["-a", "b"], ["-a"]) == "'b' is lost"
        assert difference(["-a"], []) == "'-a' is lost"
