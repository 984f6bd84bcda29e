"""A folder of one's own tiles as a dataset: described by a TOML file, read like a published archive."""
