"""One file for each operator: what it is called with in tests and benches, and how near it must come."""
