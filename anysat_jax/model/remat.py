"""Rematerialisation: what of a module's activations is kept for the backward pass, and what is computed again."""

from typing import Any

import flax.linen as nn
import jax

NONE, DOTS, FULL = "none", "dots", "full"
POLICIES = (NONE, DOTS, FULL)
"""none: everything is kept. dots: the results of products with weights are; norms, activations and attention weights
are computed again, which costs little. full: a module's inputs alone are, which costs a third more compute."""


def rematerialised(module: type[nn.Module], policy: str, **how: Any) -> type[nn.Module]:
    """The module's class under a policy of `POLICIES`; `how`: more arguments of `nn.remat`."""
    if policy == NONE:
        return module
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == DOTS else None
    return nn.remat(module, policy=saved, **how)


def policy_name(stored: bool | str) -> str:
    """A policy as files hold it: True and False are those of files from before there were names."""
    return {False: NONE, True: FULL}.get(stored, stored)
