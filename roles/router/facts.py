"""What a router's host has of it."""

from pyinfra.api import FactBase, QuoteString, StringCommand

from moehost.settings_access import Router
from roles.base import PROGRAMS
from roles.facts import Texts
from roles.models.verification import LIBRARY

ACCOUNT = "moehost-router"
UNIT = "moehost-router.service"
LEASES, TIMER = "moehost-router-leases.service", "moehost-router-leases.timer"
FOLDER = "/etc/moehost/router"
CONFIGURATION, MODELS, NODES = f"{FOLDER}/haproxy.cfg", f"{FOLDER}/models.json", f"{FOLDER}/nodes.json"
CERTIFICATE, ROOT_CERTIFICATE = f"{FOLDER}/certificate.pem", f"{FOLDER}/root.crt"
AUTHORITY = f"{FOLDER}/authority.key"
# The list that `moehost keys` keeps, and the one that an owner keeps, which comes with a deploy.
OWN_LIST, OWNERS_LIST = f"{FOLDER}/user-keys", f"{FOLDER}/user-keys-of-the-owner"
NODE_KEY = f"{FOLDER}/node-key"
AUTHORITIES = f"{FOLDER}/nodes"
OWNERS_AUTHORITY = f"{AUTHORITIES}/owners.crt"
FILES, DRAINS, SOCKETS = "/run/moehost-router-files", "/run/moehost-router-drains", "/run/moehost-router"
MAKE_CERTIFICATE = f"{PROGRAMS}/router-certificate"
# What talks to HAProxy on its host.
BALANCER = f"env PYTHONPATH={LIBRARY} python3 -B -m moehost.balancer"


class RouterState(FactBase[dict[str, str]]):
    """How the router is, beside what systemd says of it.

    `config`: `current` where HAProxy goes by all files as they are, `old` where a reload is owed, `none` without it;
    `certificate`: `good` where one of its own authority's is for this name and not soon over; `has_ipv6`: `yes` or
    `no`; `timer`: what systemd says of it; `answer`: the HTTP status of /health, asked by TLS, empty without one.

    + name: that the certificate is for, `DNS:...` or `IP:...`
    + host: name that it is called by
    + port: its port
    + trusted: file with the certificate that it is known by
    """

    default = dict

    def command(self, certificate: str, host: str, port: int, trusted: str) -> StringCommand:
        url_host = f"[{host}]" if ":" in host else host
        return StringCommand(
            f"{BALANCER} compare 2>/dev/null;",
            f"[ ! -e {MAKE_CERTIFICATE} ] || env", QuoteString(f"NAME={certificate}"), f"{MAKE_CERTIFICATE} look;",
            "echo has_ipv6=$(test -e /proc/net/if_inet6 && echo yes || echo no);",
            f"echo timer=$(systemctl is-active {TIMER});",
            "echo answer=$(curl --silent --max-time 10 --output /dev/null --write-out '%{http_code}'",
            "--cacert", QuoteString(trusted), "--connect-to", QuoteString(f"::127.0.0.1:{port}"),
            QuoteString(f"https://{url_host}:{port}/health"), ")",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, str]:
        return dict(line.split("=", 1) for line in output if "=" in line)


class Balance(Texts, FactBase[dict[str, str]]):
    """Nodes and models as the running router sees them: `status` in JSON, `state` of its unit."""

    commands = {
        "state": f"systemctl is-active {UNIT}",
        "status": f"runuser -u {ACCOUNT} -- {BALANCER} status",
    }


def certificate_of(wish: Router) -> str:
    """The certificate that the router is known by: the owner's, or that of its own authority."""
    return CERTIFICATE if wish.certificate_file else ROOT_CERTIFICATE
