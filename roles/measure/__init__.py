"""A node's memory, disk and cards, measured on the node itself."""
