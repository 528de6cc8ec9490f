"""What an owner may write of NVIDIA's cards, their driver and their way into containers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from moehost import cdi
from moehost.setting import Fingerprint, Settings, matching

Branch = Annotated[str, matching(r"[0-9]{3}", "write the number of a branch, e.g. 580")]
DebVersion = Annotated[str, matching(r"[0-9][A-Za-z0-9.+~-]*", "write a whole version as apt has it, e.g. 1.20.0-1")]
Watts = Annotated[int, Field(ge=50, le=2000)]
TOOLKIT_REPOSITORY = "https://nvidia.github.io/libnvidia-container/stable/deb"


class Nvidia(Settings):
    """The driver of NVIDIA's cards, and what brings the cards into containers."""

    cards: int | None = Field(
        None, ge=1, le=16, description="cards that must answer before a service starts; all on the bus if not given"
    )
    power_limit_w: list[Watts] = Field(
        default_factory=list,
        description="power limit, watts: one for all cards, or one for each in the bus's order",
    )
    driver: Literal["install", "keep"] = Field(
        "install", description="`install`: have the driver of `branch`; `keep`: it is yours, and only checked"
    )
    branch: Branch | None = Field(
        None,
        description="branch of the driver; the installed one if it is 580 or 595, else 580, or 595 where there is no "
        "580 (NVIDIA's repository for Debian 13); open kernel modules always",
    )
    container_toolkit: bool | None = Field(
        None,
        description="whether containers can use the cards; if not given, where a service runs in one, or "
        "`container_runtimes` names a runtime",
    )
    toolkit_version: DebVersion = Field("1.20.0-1", description="version of NVIDIA's container toolkit, exactly")
    toolkit_repository: str = Field(TOOLKIT_REPOSITORY, description="where the container toolkit comes from")
    toolkit_key: Fingerprint | None = Field(
        None, description="fingerprint of that repository's key, if it is another one than NVIDIA's"
    )
    container_runtimes: list[Literal["docker", "containerd"]] = Field(
        default_factory=list, description="runtimes beside Podman that are configured for the cards, too"
    )

    @field_validator("toolkit_version")
    @classmethod
    def _toolkit_has_no_known_hole(cls, value: str) -> str:
        if reason := cdi.version_refusal(value):
            raise ValueError(reason)
        return value
