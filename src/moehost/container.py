"""A service in a container: the options of Podman that it runs with, as a Quadlet has them and as `podman run` does.

Which key a Quadlet may have depends on Podman's version (read from `pkg/systemd/quadlet/quadlet.go` of its tags): an
unknown one makes the generator drop the whole unit. What a version has no key for is handed to it as `PodmanArgs=`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from moehost.cdi import KIND
from moehost.settings import Service

# First version with a generator of units, and the first that has each key that came later.
FIRST_QUADLET = (4, 4)
SINCE = {
    **dict.fromkeys(("LogDriver", "Secret", "Tmpfs"), (4, 5)),
    "Pull": (4, 6),
    **dict.fromkeys(("ShmSize", "Ulimit"), (4, 7)),
    "StopTimeout": (5, 0),
}
# Older ones miss `--cgroups=split` (3.1) or a secret with an owner (3.3).
FIRST_PODMAN = (4, 0)
# Who an image's server is; the same number on every node, and nobody's elsewhere.
USER = 10001
KEYS_PATH = "/run/secrets/api-keys"
# A little less than the unit's TimeoutStopSec, so that Podman is the one that ends it.
STOP_S = 170


@dataclass(frozen=True)
class Option:
    """One option: the key of a Quadlet, its value, and the flag of `podman run`."""

    key: str
    value: str
    flag: str

    @property
    def word(self) -> str:
        """As `podman run` takes it."""
        return self.flag if self.value == "true" else f"{self.flag}={self.value}"


def version(text: str) -> tuple[int, int]:
    """Major and minor number of e.g. `podman version 5.4.2`; (0, 0) where there is none."""
    found = re.search(r"(\d+)[.](\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def options(service: Service, model_dir: str, env: Mapping[str, str], gpus: int) -> list[Option]:
    """What a service's container is allowed and given.

    + model_dir: folder of the model; it has the same path inside, so the command line is that of a native unit
    + env: environment of the engine
    + gpus: how many cards the plan uses; none are handed over without one
    """
    return list(_options(service, model_dir, env, gpus))


def _options(service: Service, model_dir: str, env: Mapping[str, str], gpus: int) -> Iterator[Option]:
    identity, home = f"llama-server-{service.name}", f"/var/lib/moehost/{service.name}"
    yield Option("ContainerName", identity, "--name")
    yield Option("Pull", "never", "--pull")
    yield Option("LogDriver", "journald", "--log-driver")
    if gpus:
        yield Option("AddDevice", f"{KIND}=all", "--device")
    yield Option("DropCapability", "all", "--cap-drop")
    if service.has_sys_nice:
        yield Option("AddCapability", "SYS_NICE", "--cap-add")
    yield Option("NoNewPrivileges", "true", "--security-opt=no-new-privileges")
    yield Option("ReadOnly", "true", "--read-only")
    yield Option("Tmpfs", "/tmp:rw,size=1g,mode=1777", "--tmpfs")  # noqa: S108  (its own)
    # Two cards exchange data through shared memory; it is a limit, and takes nothing by itself.
    yield Option("ShmSize", "16g", "--shm-size")
    # Those of the unit: LimitMEMLOCK, LimitNOFILE, LimitCORE.
    yield Option("Ulimit", "host", "--ulimit")
    yield Option("StopTimeout", str(STOP_S), "--stop-timeout")
    yield Option("Network", "host", "--network")
    yield Option("Volume", f"{model_dir}:{model_dir}:ro", "--volume")
    yield Option("Volume", f"{identity}:{home}:U", "--volume")
    yield Option("Environment", f"HOME={home}", "--env")
    for key, value in env.items():
        yield Option("Environment", f"{key}={value}", "--env")
    yield Option("Secret", f"{identity},type=mount,target={KEYS_PATH},uid={USER},mode=0400", "--secret")


def quadlet_lines(chosen: Iterable[Option], podman: tuple[int, int]) -> list[str]:
    """The lines of `[Container]` that this version of Podman understands."""
    return [
        f"{each.key}={each.value}" if podman >= SINCE.get(each.key, FIRST_QUADLET) else f"PodmanArgs={each.word}"
        for each in chosen
    ]


def arguments(unit: str, image: str) -> list[str]:
    """What a generated unit hands to the image's entry point: the words after the image.

    Empty where there is no such `ExecStart=`: a generator that can't read a command line leaves it out in silence.
    """
    found = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    # shlex reads double quotes as systemd does where there is no backslash, and none gets into a unit.
    words = shlex.split(found[1]) if found else []
    return words[words.index(image) + 1 :] if image in words else []


def difference(wanted: Iterable[str], found: Iterable[str]) -> str:
    """The first place in which two command lines differ, as a sentence."""
    pairs = zip_longest(wanted, found)
    want, have = next((pair for pair in pairs if pair[0] != pair[1]), (None, None))
    return f"{want!r} has become {have!r}" if have is not None else f"{want!r} is lost"
