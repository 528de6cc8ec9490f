"""A deploy of its own: a user of a gateway or router gets a key, or loses it.

    pyinfra INVENTORY --limit HOST roles/gateway/keys.py --data x_folder=FOLDER -y

FOLDER on this computer, which nobody else may read, holds `order.json`; `moehost keys` makes it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation

from roles.gateway import facts as gateway
from roles.node import this_node
from roles.router import facts as router

PLACES = {"gateway": gateway, "router": router}


@operation(is_idempotent=False)
def changed(order: dict[str, str]) -> Iterator[Any]:
    """
    Have a user in the list, or out of it, and let whoever has it go by it at once; answers under way go on.

    + order: `of` (`gateway` or `router`), `do` (`add` or `revoke`), the user's `user`, with `add` the whole `line`
    """
    place = PLACES[order["of"]]
    path = place.OWN_LIST
    # One change at a time, and the list is the old or the new one, whatever is cut off.
    locked = f"cd {place.FOLDER} && exec 9<. && flock 9 && umask 077 && touch {path}"
    replaced = f"sync {path}.new && mv {path}.new {path} && systemctl reload {place.UNIT}"
    user = QuoteString(order["user"])
    names = f"cut -d' ' -f1 {path} | grep -qxF --"
    if order["do"] == "add":
        # The key comes over standard input: nobody sees that of others.
        yield StringCommand(
            locked, f"&& ! {names}", user, f"&& cat {path} - >{path}.new &&", replaced, _stdin=order["line"]
        )
    else:
        yield StringCommand(
            locked, f"&& {names}", user, "&& awk -v", QuoteString(f"user={order['user']}"),
            f"'$1 != user' {path} >{path}.new &&", replaced,
        )  # fmt: skip


if this_node():
    changed(name="Change the users' keys", order=json.loads(Path(host.data.x_folder, "order.json").read_text()))
