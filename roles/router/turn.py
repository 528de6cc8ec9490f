"""A deploy of its own: a router sends nodes no requests, or sends them some again.

    pyinfra INVENTORY --limit HOST roles/router/turn.py --data x_do=drain --data x_labels=LABEL,... ... -y

`moehost router` runs it, with `x_lease_s` and `x_wait_s` in seconds.
"""

from collections.abc import Iterator
from typing import Any

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation

from roles.node import this_node
from roles.router.facts import ACCOUNT, BALANCER


@operation(is_idempotent=False)
def turned(do: str, labels: list[str], lease_s: str, wait_s: str) -> Iterator[Any]:
    """
    Drain nodes and wait until they have nothing to do, or have them get requests and wait until they are well.

    + do: `drain` or `ready`
    + labels: names of nodes in HAProxy's words
    + lease_s: how long a drain lasts unless it is renewed, seconds
    + wait_s: how long is waited, seconds
    """
    yield StringCommand(
        f"runuser -u {ACCOUNT} -- {BALANCER}", do, *(QuoteString(each) for each in labels),
        "--lease-s", QuoteString(lease_s), "--wait-s", QuoteString(wait_s),
    )  # fmt: skip


if this_node():
    turned(
        name="Turn requests away, or back",
        do=host.data.x_do,
        labels=host.data.x_labels.split(","),
        lease_s=str(host.data.x_lease_s),
        wait_s=str(host.data.x_wait_s),
    )
