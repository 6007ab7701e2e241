"""One task type a file: head, collation, loss and metrics."""
