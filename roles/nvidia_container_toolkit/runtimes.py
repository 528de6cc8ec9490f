"""How other runtimes than Podman get to know CDI."""

from collections.abc import Iterator
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand, operation

from moehost import confined
from moehost.cdi import CdiError
from moehost.container_runtimes import check, docker_config
from roles.nvidia_container_toolkit.facts import DAEMON_JSON, Runtimes
from roles.operations import files, refuse, unit_options


@operation()
def runtime_configured(runtime: str) -> Iterator[Any]:
    """
    Have a runtime hand out cards by CDI; it is restarted for that if it runs.

    + runtime: `docker` or `containerd`
    """
    found = host.get_fact(Runtimes)
    if not found["cards"]:
        host.noop(f"no NVIDIA card in this machine: {runtime} is left alone")
        return
    try:
        check(runtime, found[runtime])
        yield from _docker(found) if runtime == "docker" else _containerd(found)
    except CdiError as error:
        yield refuse(str(error))


def _docker(found: dict[str, str]) -> Iterator[Any]:
    config = docker_config(found["docker_config"])
    if config != found["docker_config"]:
        yield from files._inner(contents={DAEMON_JSON: config})
    # What it was started with counts, and not what has just been written.
    if found["docker_state"].strip() == "active" and not found["docker_folders"].strip():
        yield "systemctl restart docker.service"
        if not host.get_fact(Runtimes)["docker_folders"].strip():
            yield refuse("Docker does without CDI after a restart; see: journalctl -u docker, and `docker info`")
            return
    host.noop("Docker has CDI")


def _containerd(found: dict[str, str]) -> Iterator[Any]:
    if "true" in found["containerd_config"]:
        host.noop("containerd has CDI")
        return
    # As a unit, so that nothing comes between the two: of the containerd that runs nobody can tell what it has read.
    yield StringCommand(
        "systemd-run --quiet --wait --collect --unit=moehost-containerd-cdi", *unit_options(confined.containerd()),
        "sh -c 'nvidia-ctk runtime configure --runtime=containerd --cdi.enabled",
        "&& systemctl try-restart containerd.service'",
    )  # fmt: skip
