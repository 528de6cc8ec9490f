"""A deploy of its own: the owner is told something, as a test.

    pyinfra INVENTORY --limit HOST roles/notify/tell.py -y

`moehost notify test` runs it.
"""

from roles.node import this_node
from roles.notify.operations import tried

if node := this_node():
    tried(name="Tell the owner something", wish=node.notify)
