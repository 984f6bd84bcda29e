"""The optimizer of adaptation: AdamW, counted in epochs, with a share of the rate for each layer."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from anysat_jax.train.optimizer import adamw, make_schedule


def make_adapt_optimizer(
    config: Mapping[str, Any], steps_per_epoch: int, epochs: int, multipliers: Any | None = None
) -> optax.GradientTransformation:
    """Gradient clipping by the global norm (if asked for), AdamW, the schedule, and the layers' shares of the rate.

    What the plateau schedule takes off the rate is decided between epochs, on the validation metric, and is not in
    here: see `anysat_jax.tuning.selection` and `AdaptState.rate_scale`.

    Args:
      config: the section `optimizer`: learning_rate, weight_decay, clip_norm (None: no clipping), schedule,
        warmup_epochs (may be a fraction of one).
      steps_per_epoch: updates of an epoch.
      epochs: of the whole training, warm-up included.
      multipliers: of each leaf's update, its weight decay included; scalars or arrays that can be broadcast to the
        leaf, in the structure of the parameters. None: 1 everywhere.

    Raises:
      ValueError: there is no such schedule.
    """
    in_steps = {**config, "warmup_steps": round(config["warmup_epochs"] * steps_per_epoch)}
    parts = adamw(in_steps, make_schedule(in_steps, epochs * steps_per_epoch))
    if multipliers is not None:
        parts.append(_multiplied(multipliers))
    return optax.chain(*parts)


def _multiplied(multipliers: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda update, by: update * by, updates, multipliers))
