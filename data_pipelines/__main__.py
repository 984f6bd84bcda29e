"""`python -m data_pipelines`: see `data_pipelines.cli`."""

import signal
import sys

import anysat_jax  # noqa: F401  first, as it answers Ctrl-C while the rest is imported
from data_pipelines.cli import main

if __name__ == "__main__":
    # From here on the commands answer it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
