"""Pictures of single tiles, as the archive has them: to see whether data were read the way they were meant."""
