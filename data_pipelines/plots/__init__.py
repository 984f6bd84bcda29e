"""Figures of tiles, for looking at a dataset before training on it."""
