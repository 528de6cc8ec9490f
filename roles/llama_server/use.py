"""A deploy of its own: the services switch to a release that the node has.

    pyinfra INVENTORY --limit HOST roles/llama_server/use.py --data x_release=RELEASE -y

RELEASE is the beginning of a name, or `previous`; `moehost engine use` and `moehost engine rollback` run it.
"""

from pyinfra import host

from roles.ik_llama.operations import named_next
from roles.llama_server import llama_server
from roles.node import this_node

if node := this_node():
    named_next(name="Choose the release", release=host.data.x_release)
    llama_server(node)
