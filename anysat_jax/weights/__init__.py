"""Weights: sources of first weights, the published layout, exported files, files of checkpoints."""
