"""A deploy of its own, after deploy.py in the same run: how the node is now.

pyinfra INVENTORY --limit HOST deploy.py roles/fleet/look.py -y
"""

from roles.fleet.operations import looked

looked(name="Look how the node is")
