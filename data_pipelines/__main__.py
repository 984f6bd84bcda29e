"""`python -m data_pipelines`: see `data_pipelines.cli`."""

import sys

from data_pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
