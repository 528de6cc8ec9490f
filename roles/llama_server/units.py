"""The units of a service: a native one, a Quadlet, and a plain one for a Podman that knows no Quadlets."""

from dataclasses import dataclass
from typing import Any

from moehost import container, images
from moehost.plan import Plan
from moehost.settings import Service
from moehost.unit import exec_line
from roles.base import PROGRAMS
from roles.ik_llama.facts import ENGINE
from roles.operations import render

UNITS = "/etc/systemd/system"
QUADLETS = "/etc/containers/systemd"


@dataclass(frozen=True)
class Source:
    """What a service's unit is made from.

    + release: name of the engine's release
    + addresses: whom it exchanges packets with, as systemd has it; none where nothing is filtered
    + podman: version of the node's Podman, (0, 0) without one
    """

    service: Service
    plan: Plan
    model_path: str
    release: str
    addresses: tuple[str, ...]
    podman: tuple[int, int] = (0, 0)

    @property
    def is_quadlet(self) -> bool:
        """Whether systemd gets its unit from Podman's generator."""
        return self.service.runtime == "container" and self.podman >= container.FIRST_QUADLET

    @property
    def path(self) -> str:
        """Where the unit, or the Quadlet, stays."""
        return paths(self.service.name)[self.is_quadlet]

    @property
    def unit_file_state(self) -> str:
        """What systemd says of a unit that starts at boot."""
        return "generated" if self.is_quadlet else "enabled"

    @property
    def image(self) -> str:
        """The image of a container."""
        return f"{images.REPOSITORY}:{self.release}"

    def text(self, generation: str, engine: str = "current") -> str:
        """
        The unit or Quadlet.

        + generation: what its process is recognised by
        + engine: link or folder below `/opt/moehost/engine` that a native unit starts; an image is always a release's
        """
        values = self.values | {"generation": generation}
        if self.service.runtime == "native":
            words = [f"{ENGINE}/{engine}/bin/llama-server", *self.plan.arguments]
            return render("llama_server/llama-server.service.j2", exec_start=exec_line(words), **values)
        # Podman hands its own environment on in late versions only: the server itself has it.
        env = {"MOEHOST_GENERATION": generation, **self.plan.placement.env}
        options = container.options(self.service, values["model_dir"], env, len(self.plan.node.gpus))
        if self.is_quadlet:
            return render(
                "llama_server/llama-server.container.j2",
                image=self.image,
                options=container.quadlet_lines(options, self.podman),
                exec_line=exec_line(self.plan.arguments),
                **values,
            )
        words = [*(each.word for each in options), self.image, *self.plan.arguments]
        return render("llama_server/llama-server-podman.service.j2", exec_line=exec_line(words), **values)

    @property
    def values(self) -> dict[str, Any]:
        """What its templates are told, but for its generation and its command line."""
        placement = self.plan.placement
        return {
            "service": self.service,
            "addresses": self.addresses,
            "variables": placement.env,
            "model_path": self.model_path,
            "model_dir": self.model_path.rpartition("/")[0],
            "needed_mib": self.plan.needed_mib,
            "pool_mib": self.plan.pool_mib,
            "pages": placement.pages,
            "least_huge_mib": self.plan.least_huge_mib,
            "is_interleaved": placement.is_interleaved,
            "workers": placement.offload.workers,
            "warm_up_tokens": placement.warm_up_tokens,
            "least_mib": self.plan.least_mib,
            "folder": folder(self.service.name),
            "programs": PROGRAMS,
            "gpus": len(self.plan.node.gpus),
        }


def paths(service: str) -> tuple[str, str]:
    """Where a service's unit and its Quadlet are; there is never more than one of them."""
    unit = f"llama-server-{service}"
    return f"{UNITS}/{unit}.service", f"{QUADLETS}/{unit}.container"


def folder(service: str) -> str:
    """Where a service's plan and keys are."""
    return f"/etc/moehost/{service}"
