"""A deploy of its own: a user of the gateway gets a key, or loses it.

    pyinfra INVENTORY --limit HOST roles/gateway/keys.py --data x_folder=FOLDER -y

FOLDER on this computer, which nobody else may read, holds `order.json`; `moehost keys` makes it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation

from roles.gateway.facts import FOLDER, OWN_LIST, UNIT
from roles.node import this_node

# One change at a time, and the list is the old or the new one, whatever is cut off.
LOCKED = f"cd {FOLDER} && exec 9<. && flock 9 && umask 077 && touch {OWN_LIST}"
REPLACED = f"sync {OWN_LIST}.new && mv {OWN_LIST}.new {OWN_LIST} && systemctl reload {UNIT}"


@operation(is_idempotent=False)
def changed(order: dict[str, str]) -> Iterator[Any]:
    """
    Have a user in the list, or out of it, and let the gateway go by it at once; answers under way go on.

    + order: `do` (`add` or `revoke`), the user's `user`, and with `add` the whole `line`
    """
    user = QuoteString(order["user"])
    names = f"cut -d' ' -f1 {OWN_LIST} | grep -qxF --"
    if order["do"] == "add":
        # The key comes over standard input: nobody sees that of others.
        yield StringCommand(
            LOCKED, f"&& ! {names}", user, f"&& cat {OWN_LIST} - >{OWN_LIST}.new &&", REPLACED, _stdin=order["line"]
        )
    else:
        yield StringCommand(
            LOCKED, f"&& {names}", user, "&& awk -v", QuoteString(f"user={order['user']}"),
            f"'$1 != user' {OWN_LIST} >{OWN_LIST}.new &&", REPLACED,
        )  # fmt: skip


if this_node():
    changed(name="Change the users' keys", order=json.loads(Path(host.data.x_folder, "order.json").read_text()))
