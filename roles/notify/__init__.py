"""How the owner is told when a unit fails."""

from pathlib import Path

from pyinfra.api import deploy

from moehost.settings import Node
from roles.notify.operations import silent, told
from roles.operations import packages


@deploy("Notification")
def notify(node: Node) -> None:
    wish = node.notify
    if not wish:
        silent(name="Take away what tells of failures")
        return
    url = Path(wish.url_file).expanduser().read_text() if wish.url_file else None
    packages(name="Have the bus that systemd is asked over", wanted=["dbus"], _retries=5, _retry_delay=10)
    told(name="Have failures of units told", wish=wish, url=url)
