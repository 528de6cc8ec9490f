"""A service's fastest configuration, found by launches on the node."""
