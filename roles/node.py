"""The node that a deploy is at, as its owner described it."""

from pathlib import Path

from pyinfra import host, logger, state
from pyinfra.api.exceptions import PyinfraError

from moehost import settings


def this_node() -> settings.Node | None:
    """The settings of this host, or None when they are wrong: then each mistake is named and the host drops out.

    Nothing has been touched by then, and the other hosts go on.
    """
    try:
        node = settings.read(host.data.dict())
        absent = [(key, path) for key, path in node.local_files.items() if not Path(path).expanduser().is_file()]
        if not absent:
            return node
        lines = [f"{key}: {path} is not a file on this computer; make it or correct the path" for key, path in absent]
    except settings.SettingsError as error:
        lines = error.lines
    for line in lines:
        host.log_styled(line, fg="red", log_func=logger.error)
    # As State.fail_hosts does, without its question on the terminal.
    state.failed_hosts.add(host)
    state.active_hosts.discard(host)
    if not state.active_hosts:
        raise PyinfraError("no host has settings to work with")
    return None
