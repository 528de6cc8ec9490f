"""What happens on a node: one package per role, with one `@deploy` each."""
