"""Pages, tables and pictures of runs, drawn from their files and from plain arrays."""
