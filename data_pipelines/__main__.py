"""`python -m data_pipelines`: see `data_pipelines.commands.cli`."""

import sys

from data_pipelines.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
