"""The node that a deploy is at, as its owner described it."""

from contextlib import suppress
from functools import cache
from pathlib import Path

from pyinfra import host, inventory, logger, state
from pyinfra.api import Inventory
from pyinfra.api.exceptions import PyinfraError

from moehost import gateway, keys, router, settings, sharing
from moehost.settings_access import Router


def this_node() -> settings.Node | None:
    """The settings of this host, or None when they are wrong: then each mistake is named and the host drops out.

    Nothing has been touched by then, and the other hosts go on.
    """
    try:
        node = settings.read(host.data.dict())
        lines = [*_mistakes(node), *sharing.problems(_nodes(state.inventory) | {host.name: node}, host.name)]
        if not lines:
            return node
    except settings.SettingsError as error:
        lines = error.lines
    for line in lines:
        host.log_styled(line, fg="red", log_func=logger.error)
    # As State.fail_hosts does, without its question on the terminal. `host` is whichever host a deploy is at.
    this = state.inventory.get_host(host.name)
    state.failed_hosts.add(this)
    state.active_hosts.discard(this)
    if not state.active_hosts:
        raise PyinfraError("no host has settings to work with")
    return None


def inventory_shares() -> list[sharing.Share]:
    """Which nodes of the inventory hold layers for which, whatever hosts this deploy is limited to."""
    return _shares(state.inventory)


def routed(wish: Router) -> dict[str, settings.Node]:
    """The nodes that a router stands before, also those that this run leaves alone."""
    return {name: node for name, node in _nodes(state.inventory).items() if name in wish.nodes}


def routers() -> dict[str, settings.Node]:
    """The hosts of the inventory that are routers."""
    return {name: node for name, node in _nodes(state.inventory).items() if node.router}


@cache
def _shares(inventory: Inventory) -> list[sharing.Share]:
    return sharing.shares(_nodes(inventory))


@cache
def _nodes(inventory: Inventory) -> dict[str, settings.Node]:
    """The settings of all hosts of the inventory that have right ones."""
    found = {}
    for each in inventory:
        with suppress(settings.SettingsError):
            found[each.name] = settings.read(each.data.dict())
    return found


def _mistakes(node: settings.Node) -> list[str]:
    """What is wrong with the files on this computer that the settings name, a line each."""
    lines = router.mistakes(host.name, node.router, inventory.hosts, routed(node.router)) if node.router else []
    if node.gateway:
        try:
            router.node_keys(host.name, routers())
        except router.KeyFileError as error:
            lines.append(str(error))
    if lines:
        return lines
    absent = [(key, path) for key, path in node.local_files.items() if not Path(path).expanduser().is_file()]
    if absent:
        return [f"{key}: {path} is not a file on this computer; make it or correct the path" for key, path in absent]
    for key, path in node.local_files.items():
        try:
            text = Path(path).expanduser().read_text()
            if key.endswith(".api_keys_file"):
                keys.service_keys(text, f"{key}: {path}")
            elif key.endswith(".user_keys_file"):
                keys.user_keys(text, key, path)
            elif key == "router.node_key_file":
                router.node_key(path)
            elif key.endswith(".certificate_file"):
                role = key.removesuffix(".certificate_file")
                private = Path(node.local_files[f"{role}.certificate_key_file"]).expanduser().read_text()
                gateway.check_certificate(text, private, getattr(node, role).host, f"{role}.host")
        except keys.KeysError as error:
            lines += error.lines
        except router.KeyFileError as error:
            lines.append(str(error))
        except (gateway.CertificateError, UnicodeDecodeError, OSError) as error:
            lines.append(f"{key}: {path} {error}")
    return lines
