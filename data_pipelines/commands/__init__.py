"""The command line of the data: list, show, fake, look, prepare; one file each."""
