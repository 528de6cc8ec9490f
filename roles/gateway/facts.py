"""What a node has of the gateway."""

import shlex
from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand

from moehost.unit import exec_line
from roles.base import PROGRAMS
from roles.facts import Texts

ACCOUNT = "moehost-gateway"
UNIT = "moehost-gateway.service"
FOLDER = "/etc/moehost/gateway"
CADDYFILE = f"{FOLDER}/Caddyfile"
ROOT_CERTIFICATE = f"{FOLDER}/root.crt"
# The list that `moehost keys` keeps, and the one that an owner keeps, which comes with a deploy.
# Routers that may ask, as lines of such a list: a deploy hands them over.
ROUTERS = f"{FOLDER}/router-keys"
OWN_LIST, OWNERS_LIST = f"{FOLDER}/user-keys", f"{FOLDER}/user-keys-of-the-owner"
KEYS = "/run/moehost-gateway-keys"
# A file for each service that is warm, which systemd makes and takes away.
WARM = "/run/moehost-warm"
ADMIN = "/run/moehost-gateway/admin.sock"
AUTHORITY = "/var/lib/moehost-gateway/caddy/pki/authorities/local/root.crt"
RENDER_KEYS = f"{PROGRAMS}/gateway-keys"
# Both as JSON, one line each: what the files say, and what the running gateway goes by.
COMPARE = """
import json, sys
texts = [json.loads(line) for line in sys.stdin]
print("config=" + ("current" if len(texts) == 2 and texts[0] == texts[1] else "old"))
"""


class Gateway(FactBase[dict[str, str]]):
    """How the gateway is, beside what systemd says of it.

    `binary`: what changes when Caddy is upgraded; `config`: `current` where the running gateway goes by its files and
    by the keys that are there, else `old`; `answer`: the HTTP status of /health, asked by TLS, empty without one.

    + services: names of the services that it stands before
    + keys: list of the users' keys
    + host: name that it is called by
    + port: its port
    + trusted: file with the certificate that it is known by
    """

    default = dict

    def command(self, services: list[str], keys: str, host: str, port: int, trusted: str) -> StringCommand:
        render = exec_line([keys, *services])
        url_host = f"[{host}]" if ":" in host else host
        return StringCommand(
            "echo binary=$(stat -L -c '%i %Y %s' /usr/bin/caddy 2>/dev/null); dir=$(mktemp -d);",
            f"{{ {RENDER_KEYS} $dir {render} 2>/dev/null && KEYS=$dir HOME=$dir",
            f"caddy adapt --config {CADDYFILE} --adapter caddyfile 2>/dev/null; echo;",
            f"curl --silent --max-time 10 --http1.0 --header Host: --unix-socket {ADMIN} http://gateway/config/; }}",
            "| grep . | python3 -c", QuoteString(COMPARE), "; rm -r \"$dir\";",
            "echo answer=$(curl --silent --max-time 10 --output /dev/null --write-out '%{http_code}'",
            "--cacert", QuoteString(trusted), "--connect-to", QuoteString(f"::127.0.0.1:{port}"),
            QuoteString(f"https://{url_host}:{port}/health"), ")",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, str]:
        return dict(line.split("=", 1) for line in output if "=" in line)


class Unmarked(FactBase[list[str]]):
    """Those of the units that are active, and so warm, without a mark of that.

    + units: names of services' units
    """

    default = list

    def command(self, units: list[str]) -> StringCommand:
        return StringCommand(
            "for unit in", *(QuoteString(unit) for unit in units), "; do",
            f"[ -e \"{WARM}/${{unit%.service}}\" ] || ! systemctl --quiet is-active \"$unit\" ||",
            "echo \"$unit\"; done",
        )  # fmt: skip

    def process(self, output: list[str]) -> list[str]:
        return output


class RootCertificate(FactBase[str]):
    """The certificate of the node's own authority (PEM), empty without one; read with the rights of its account."""

    default = str

    def command(self) -> str:
        return f"runuser -u {ACCOUNT} -- cat {AUTHORITY} 2>/dev/null || true"

    def process(self, output: list[str]) -> str:
        return "".join(f"{line}\n" for line in output)


class UserKeys(Texts, FactBase[dict[str, str]]):
    """The users' keys: `state` of the unit, `keys` (`NAME CREATED SHA256`, a line each; no key is in it), `root`.

    + path: list of the keys
    + unit: that goes by them
    + root: file with the certificate of its own authority
    """

    commands = {
        "state": 'systemctl is-active "$unit"',
        # `printf` is a part of the shell: nobody sees its arguments.
        "keys": 'grep -v "^#" "$path" | while read -r name key created; do [ -z "$key" ] || '
        'echo "$name ${created:--} $(printf %s "$key" | sha256sum | cut -c1-12)"; done',
        "root": 'cat "$root"',
    }

    def command(self, path: str, unit: str, root: str) -> str:  # type: ignore[override]
        return f"path={shlex.quote(path)}; unit={shlex.quote(unit)}; root={shlex.quote(root)}; {super().command()}"


def list_in_use(user_keys_file: Any) -> str:
    """The list of keys that counts."""
    return OWNERS_LIST if user_keys_file else OWN_LIST
