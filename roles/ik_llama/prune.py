"""A deploy of its own: old releases go.

    pyinfra INVENTORY --limit HOST roles/ik_llama/prune.py --data x_keep=3 -y

`moehost engine prune` runs it.
"""

from pyinfra import host

from roles.ik_llama.operations import pruned

pruned(name="Remove old releases", keep=int(host.data.x_keep))
