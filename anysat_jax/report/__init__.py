"""What a run shows at its end: scores, tables and pictures."""
