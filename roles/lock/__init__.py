"""What a node is made of, down to versions and checksums."""
