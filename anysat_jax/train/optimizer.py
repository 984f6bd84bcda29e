"""The optimizer: AdamW with decay on matrices only, gradient clipping, and two schedules."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

DECAYED = ("kernel", "relative")
"""Names of the leaves that weight decay acts on; not on biases, scales of norms, learned tokens, queries, fill values.
By name, since a matrix of a scanned stack has three axes and its bias has two."""

ADAM_B1, ADAM_B2 = 0.9, 0.999


def decay_mask(params: Any) -> Any:
    """True at each leaf that weight decay acts on, in the structure of `params`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def make_schedule(config: Mapping[str, Any], total_steps: int) -> optax.Schedule:
    """The learning rate before the update of step k, without what the plateau takes off it.

    "cosine" rises linearly from 0 over `warmup_steps`, then falls along half a cosine to 0 at `total_steps`. "plateau"
    rises alike and stays; see `make_optimizer`.

    Raises:
      ValueError: there is no such schedule.
    """
    peak, warmup = config["learning_rate"], config["warmup_steps"]
    if config["schedule"] == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, total_steps - warmup))
    elif config["schedule"] == "plateau":
        after = optax.constant_schedule(peak)
    else:
        raise ValueError(f"optimizer.schedule = {config['schedule']!r} must be 'cosine' or 'plateau'")
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(config: Mapping[str, Any], total_steps: int) -> optax.GradientTransformationExtraArgs:
    """Gradient clipping by the global norm (if asked for), AdamW, and the schedule.

    The plateau schedule multiplies the rate by `plateau.factor` once the mean loss over `plateau.window` steps has not
    fallen for `plateau.patience` windows in a row; `update` must therefore be called with `value=loss`.

    Args:
      config: the section `optimizer`: learning_rate, weight_decay, clip_norm (None: no clipping), schedule,
        warmup_steps, plateau.
      total_steps: steps of the whole training, warm-up included.

    Raises:
      ValueError: there is no such schedule.
    """
    parts = adamw(config, make_schedule(config, total_steps))
    if config["schedule"] == "plateau":
        parts.append(_plateau(config["plateau"]))
    return optax.with_extra_args_support(optax.chain(*parts))


def adamw(config: Mapping[str, Any], schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    """Clipping (if asked for), Adam, decay, and the rate: what every optimizer here begins with."""
    parts = [
        optax.scale_by_adam(ADAM_B1, ADAM_B2),
        optax.add_decayed_weights(config["weight_decay"], decay_mask),
        # Kept in the state, so that logs show the rate that was used.
        optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=schedule),
    ]
    return [optax.clip_by_global_norm(config["clip_norm"]), *parts] if config["clip_norm"] else parts


def _plateau(config: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
    return optax.contrib.reduce_on_plateau(
        factor=config["factor"], patience=config["patience"], accumulation_size=config["window"]
    )


def learning_rate(opt_state: optax.OptState) -> Float[Array, ""]:
    """The rate of the last update (before the first: of the first), the plateau's factor included."""
    rate = jnp.ones((), jnp.float32)
    for part in opt_state:
        if hasattr(part, "hyperparams"):
            rate *= part.hyperparams["learning_rate"]
        elif isinstance(part, optax.contrib.ReduceLROnPlateauState):
            rate *= part.scale
    return rate


def make_adapt_optimizer(
    config: Mapping[str, Any], steps_per_epoch: int, epochs: int, multipliers: Any | None = None
) -> optax.GradientTransformation:
    """Gradient clipping by the global norm (if asked for), AdamW, the schedule, and the layers' shares of the rate.

    What the plateau schedule takes off the rate is decided between epochs, on the validation metric, and is not in
    here: see `anysat_jax.downstream.selection` and `AdaptState.rate_scale`.

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
