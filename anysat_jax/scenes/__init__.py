"""Whole scenes: rasters of several sensors in, an embedding or a map out."""
