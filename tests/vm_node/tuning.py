"""A deploy of the host's tuning alone."""

from roles.host_tuning import host_tuning
from roles.node import this_node

if node := this_node():
    host_tuning(node)
