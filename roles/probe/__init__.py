"""What a machine is asked before it becomes a node."""
