"""Checkpoints of the published model, in and out."""
