"""A deploy of its own: the node launches engines until the fastest configuration of a service is found.

    pyinfra INVENTORY --limit HOST roles/tune/tune.py --data x_folder=FOLDER -y

FOLDER on this computer holds `order.json` and `found.json`, and gets a line of `probes.jsonl` for each probe; a
search that was cut off goes on from there. `moehost tune` makes it.
"""

from pyinfra import host

from roles.node import this_node
from roles.tune.tuned import tuned

if node := this_node():
    tuned(name="Search for the fastest configuration", node=node, folder=host.data.x_folder)
