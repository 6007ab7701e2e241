"""A saved folder → model, labels, head: predict with it, verify it, merge it to disk."""
