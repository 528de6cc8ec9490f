"""The node that a deploy is at, as its owner described it."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pyinfra import host, inventory, logger, state
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host

from moehost import gateway, keys, router, settings
from moehost.settings_access import Router


def this_node() -> settings.Node | None:
    """The settings of this host, or None when they are wrong: then each mistake is named and the host drops out.

    Nothing has been touched by then, and the other hosts go on.
    """
    try:
        node = settings.read(host.data.dict())
        lines = _mistakes(node)
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


def right(hosts: Iterable[Host]) -> dict[str, settings.Node]:
    """The settings of those of the hosts whose settings are right."""
    nodes = {}
    for each in hosts:
        with suppress(settings.SettingsError):
            nodes[each.name] = settings.read(each.data.dict())
    return nodes


def routed(wish: Router) -> dict[str, settings.Node]:
    """The nodes that a router stands before, also those that this run leaves alone."""
    return right(each for each in inventory if each.name in wish.nodes)


def routers() -> dict[str, settings.Node]:
    """The hosts of the inventory that are routers."""
    return right(each for each in inventory if each.data.get("router"))


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
