"""The launchers: `anysat_jax.launch.local` is launch/local.py.

This file is for checkouts, where the launchers are a folder at the top; a wheel has them in this package, without it.
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).resolve().parents[2] / "launch")]
