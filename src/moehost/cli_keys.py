"""`moehost keys ...`: who may ask a node's gateway, or a router."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from moehost import gateway, settings
from moehost import keys as domain
from moehost.keys import UserKey
from moehost.settings_access import Gateway, Router
from moehost.terminal import FAILED, ask_host, data_of, host_of, pyinfra, reason, say, stop

FACT = "roles.gateway.facts.UserKeys"
DEPLOY = "roles/gateway/keys.py"
KINDS = ("gateway", "router")

_host = click.argument("host", metavar="@HOST")
_user = click.argument("user", metavar="NAME")
_of = click.option("--of", type=click.Choice(KINDS), help="Whose keys, where a host is both.")
_inventory = click.option("--inventory", default="inventory", show_default=True, help="Where @HOST is looked up.")


@dataclass(frozen=True)
class There:
    """A gateway or router (`kind`): as its owner described it, and what it has of keys."""

    kind: str
    wish: Gateway | Router
    keys: list[UserKey]
    root: str


@click.group()
def keys() -> None:
    """The keys of users of a gateway or a router, and the certificate that it is known by."""


@keys.command()
@_user
@_host
@_of
@_inventory
def add(user: str, host: str, of: str | None, inventory: str) -> None:
    """Give a user a key, and print it: this once, it is never shown again.

    The gateway goes by it at once; answers that are under way go on, and no model is loaded again.
    Ends with 1 when the node could not do it, 2 on bad input.

    \b
    Example:
        moehost keys add alice @epyc.home.arpa
        moehost keys add bob @router.home.arpa --of router
        moehost keys add alice-laptop @epyc.home.arpa > key && chmod 600 key
    """
    there = _kept_on_the_node(host, of, inventory)
    if why := domain.why_not_added(user, there.keys):
        stop(why)
    key = domain.new_key()
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    _change(host, inventory, {"of": there.kind, "do": "add", "user": user, "line": f"{user} {key} {created}\n"})
    click.echo(key)
    say(f"{user} may ask {gateway.site(there.wish)}/v1; this key is not shown again")


@keys.command()
@_user
@_host
@_of
@_inventory
def revoke(user: str, host: str, of: str | None, inventory: str) -> None:
    """Take a user's key away. It is refused from now on; an answer that is under way is not cut off.

    \b
    Example:
        moehost keys revoke alice @epyc.home.arpa
    """
    there = _kept_on_the_node(host, of, inventory)
    if why := domain.why_not_revoked(user, there.keys):
        stop(why)
    _change(host, inventory, {"of": there.kind, "do": "revoke", "user": user})
    say(f"the key of {user} is refused from now on")


@keys.command("list")
@_host
@click.option("--json", "as_json", is_flag=True, help="The list for programs.")
@_of
@_inventory
def list_keys(host: str, as_json: bool, of: str | None, inventory: str) -> None:
    """Show who has a key, since when, and how its SHA-256 begins; never a key.

    \b
    Example:
        moehost keys list @epyc.home.arpa
        moehost keys list @epyc.home.arpa --json | jq '.[].name'
    """
    there = _asked(host, of, inventory)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in there.keys], indent=2))
        return
    for each in there.keys:
        click.echo(f"{each.name:39}  {each.created:20}  {each.sha256}")
    if not there.keys:
        say(f"nobody has a key yet: moehost keys add NAME {host}")


@keys.command()
@_host
@_of
@_inventory
def ca(host: str, of: str | None, inventory: str) -> None:
    """Print the certificate of the node's own authority (PEM), which clients have to trust.

    \b
    Example:
        moehost keys ca @epyc.home.arpa > moehost.crt
        curl --cacert moehost.crt https://epyc.home.arpa/health
    """
    there = _asked(host, of, inventory)
    if there.wish.certificate_file:
        stop(f"{host}: has a certificate of yours ({there.kind}.certificate_file); clients trust whom it is from")
    if not there.root:
        stop(f"{host}: has no certificate yet; deploy first (pyinfra {inventory} deploy.py)", code=FAILED)
    click.echo(there.root, nl=False)


def _kept_on_the_node(host: str, of: str | None, inventory: str) -> There:
    """One whose keys are no file of the owner's, and which runs."""
    there = _asked(host, of, inventory)
    if file := there.wish.user_keys_file:
        stop(f"{host}: its keys come from {file} ({there.kind}.user_keys_file); edit that and deploy")
    return there


def _asked(host: str, of: str | None, inventory: str) -> There:
    """What the host says; ends where it has neither, or can't be asked."""
    if not host.startswith("@"):
        stop(f"{host}: write the host as @{host}")
    kind, wish = _wish(host, of, inventory)
    folder = f"/etc/moehost/{kind}"
    path = f"{folder}/user-keys-of-the-owner" if wish.user_keys_file else f"{folder}/user-keys"
    asked = {"path": path, "unit": f"moehost-{kind}.service", "root": f"{folder}/root.crt"}
    texts, why = ask_host(host_of(host), inventory, FACT, **asked)
    if not texts or not any(texts.values()):
        stop(f"{host}: can't be asked: {why or 'it gave no answer'}", code=FAILED)
    if (state := texts["state"].strip()) != "active":
        stop(f"{host}: its {kind} is {state}; deploy first (pyinfra {inventory} deploy.py)", code=FAILED)
    return There(kind, wish, domain.listed(texts["keys"]), texts["root"])


def _wish(host: str, of: str | None, inventory: str) -> tuple[str, Gateway | Router]:
    try:
        node = settings.read(data_of(host, inventory))
    except settings.SettingsError as error:
        stop(*(f"{host}: {line}" for line in error.lines))
    there = {kind: wish for kind in KINDS if (wish := getattr(node, kind))}
    if of and of not in there:
        stop(f"--of: {host} has no {of}")
    if not there:
        stop(f"{host}: has no gateway; write gateway: {{'host': ...}} into the inventory, deploy; see access.md")
    if len(there) > 1 and not of:
        stop(f"{host} is a router and has a gateway; add --of router or --of gateway")
    kind = of or next(iter(there))
    return kind, there[kind]


def _change(host: str, inventory: str, order: dict[str, Any]) -> None:
    """Have the node change its list; ends where it could not."""
    # A folder that nobody else may read, on this computer; the order never stands in a command line.
    with tempfile.TemporaryDirectory(prefix="moehost-keys-") as folder:
        Path(folder, "order.json").write_text(json.dumps(order))
        done = pyinfra(inventory, "--limit", host_of(host), DEPLOY, "--data", f"x_folder={folder}", "-y")
    if done.returncode:
        stop(
            f"{host}: the list of keys was not changed, or not gone by: {reason(done.stderr)}",
            code=FAILED,
        )
