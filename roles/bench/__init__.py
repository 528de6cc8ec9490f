"""A node's service, measured by requests that are made on the node itself."""
