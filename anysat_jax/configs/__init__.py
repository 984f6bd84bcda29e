"""The named configs: `anysat_jax.configs.pretrain` is configs/pretrain.py.

This file is for checkouts, where the configs are a folder at the top; a wheel has them in this package, without it.
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).resolve().parents[2] / "configs")]
