"""One file a dataset: its card (facts) and its reader (a generator of examples)."""
