"""Where a node runs."""
