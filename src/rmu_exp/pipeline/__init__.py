"""A run from start to end: prepare, train, evaluate, attack, report."""
