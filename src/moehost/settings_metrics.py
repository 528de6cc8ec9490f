"""What an owner may write of how a node is watched, and how he is told; docs/metrics.md."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moehost.setting import Settings, matching
from moehost.settings_access import Port

Retention = Annotated[str, matching(r"[1-9][0-9]*[dwy]", "write a number of days, weeks or years, e.g. 90d")]
MailAddress = Annotated[str, matching(r"[^\s@<>\"']+@[^\s@<>\"']+", "write one address, e.g. you@home.arpa")]


class Metrics(Settings):
    """Figures of the node, its cards and its services, on loopback, for a Prometheus of yours or one on the node."""

    port: Port = Field(9100, description="port of the node exporter, on loopback")
    interval_s: int = Field(60, ge=15, le=600, description="how often cards and services are looked at")
    prometheus: bool = Field(
        False,
        description="whether the node keeps the figures itself and evaluates the alerts: a Prometheus on loopback",
    )
    prometheus_port: Port = Field(9090, description="port of that Prometheus, on loopback")
    retention: Retention = Field("90d", description="how long that Prometheus keeps figures")


class Notify(Settings):
    """How you are told when a unit fails."""

    by: Literal["ntfy", "webhook", "mail"] = Field(
        description="`ntfy`: a POST of the text to a topic's address; `webhook`: a POST of JSON to an address; "
        "`mail`: by the node's own sendmail"
    )
    url_file: str | None = Field(
        None, description="for `ntfy` and `webhook`: file on this computer with the address, which is kept secret"
    )
    mail_to: MailAddress | None = Field(None, description="for `mail`: who gets it")

    @model_validator(mode="after")
    def _has_a_goal(self) -> Notify:
        needed, other = ("mail_to", "url_file") if self.by == "mail" else ("url_file", "mail_to")
        if not getattr(self, needed) or getattr(self, other):
            raise ValueError(f"by {self.by!r} needs {needed}, and no {other}")
        return self
