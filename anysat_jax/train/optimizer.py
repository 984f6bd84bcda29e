"""The optimizer and the guarded update of all jobs: AdamW, decay on matrices only, clipping, and two schedules."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from anysat_jax.model.init import flat_names
from anysat_jax.train.config import OptimizerConfig, PlateauConfig

# Leaves that weight decay acts on; not on biases, scales of norms, learned tokens, queries, fill values. By name, since
# a matrix of a scanned stack has three axes and its bias has two.
DECAYED = ("kernel", "relative")

ADAM_B1, ADAM_B2 = 0.9, 0.999


def decay_mask(params: Any) -> Any:
    """Returns True at each leaf that weight decay acts on, in the structure of `params`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def make_schedule(config: OptimizerConfig, *, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Returns the learning rate before the update of step k, without the plateau's factor.

    "cosine" rises linearly from 0 over `warmup_steps`, then falls along half a cosine to 0 at `total_steps`. "plateau"
    rises alike and stays constant.
    """
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.learning_rate, max(1, total_steps - warmup_steps))
    else:
        after = optax.constant_schedule(config.learning_rate)
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup_steps), after], [warmup_steps])


def make_optimizer(
    config: OptimizerConfig,
    *,
    warmup_steps: int,
    total_steps: int,
    loss_plateau: PlateauConfig | None = None,
    window: int = 1,
    multipliers: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns clipping by the global norm, AdamW and the schedule, with a plateau of the loss and rates by leaf.

    With a `clip_norm`, `update` must be called with `norm`, that of all gradients.

    Args:
      warmup_steps, total_steps: updates; the warm-up is part of the total.
      loss_plateau: multiplies the rate by `factor` once the mean loss over `window` steps has not fallen for
        `patience` windows in a row; `update` must then be called with `value=loss`. None: none, as where the plateau
        looks at a validation metric between epochs, see `anysat_jax.downstream.selection`.
      window: steps of one mean loss.
      multipliers: factors of each leaf's update, its weight decay included: scalars or arrays that broadcast to the
        leaf, in the structure of the parameters. None: 1 everywhere.
    """
    schedule = make_schedule(config, warmup_steps=warmup_steps, total_steps=total_steps)
    parts = [
        optax.scale_by_adam(ADAM_B1, ADAM_B2),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        # Kept in the state, so that logs show the rate that was used.
        optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=schedule),
    ]
    if config.clip_norm is not None:  # of the raw gradients, before Adam divides by their size
        parts.insert(0, clip_by_known_norm(config.clip_norm))
    if loss_plateau is not None:
        parts.append(
            optax.contrib.reduce_on_plateau(
                factor=loss_plateau.factor, patience=loss_plateau.patience, accumulation_size=window
            )
        )
    if multipliers is not None:  # last, so that a leaf's factor scales its decay too
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, multipliers)))
    return optax.with_extra_args_support(optax.chain(*parts))


def clip_by_known_norm(limit: float) -> optax.GradientTransformationExtraArgs:
    """Returns `optax.clip_by_global_norm` of a norm that was computed before: its `update` takes `norm=`.

    One norm for the log and for clipping, and one factor instead of two, save a third of the update's kernels.
    """

    def update(updates: Any, state: optax.EmptyState, params: Any = None, *, norm: Array, **_: Any) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, limit / norm)
        return jax.tree.map(lambda leaf: leaf * factor, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def learning_rate(opt_state: optax.OptState) -> Float[Array, ""]:
    """Returns the rate of the last update (before the first: of the first), including the factor of a loss plateau."""
    # Read where optax used it, not computed again from the step: a plateau's factor depends on all losses so far.
    rate = jnp.ones((), jnp.float32)
    for part in opt_state:
        if hasattr(part, "hyperparams"):
            rate *= part.hyperparams["learning_rate"]
        elif isinstance(part, optax.contrib.ReduceLROnPlateauState):
            rate *= part.scale
    return rate


State = TypeVar("State")
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A training step in two functions, which are two programs: an update is compiled once for batches of all shapes.

    Called, it is both in one: (state, *constants, *inputs) -> (state, metrics), to be jitted with the state donated.
    """

    gradients: Callable[..., tuple[Metrics, Any]]  # (state, *constants, *inputs) -> (metrics, those of `state.params`)
    update: Callable[[Any, Metrics, Any], tuple[Any, Metrics]]  # (state, losses, gradients) -> (state, more metrics)
    losses: tuple[str, ...]  # names of the metrics that `update` takes, float32 scalars

    def __call__(self, state: State, *arguments: Any) -> tuple[State, Metrics]:
        metrics, grads = self.gradients(state, *arguments)
        state, more = self.update(state, {name: metrics[name] for name in self.losses}, grads)
        return state, metrics | more


def update_if_finite(
    update: Callable[..., State], state: State, losses: Mapping[str, Array], grads: Any, *operands: Array
) -> tuple[State, Metrics]:
    """Updates a state unless a loss or a gradient is not finite. Traceable.

    Args:
      update: (state, grads, norm of the gradients, *operands) -> state.

    Returns:
      The new state, or the old one; and grad_norm (float32 scalar), finite (bool) and nonfinite_leaves, a bool for each
      of `leaf_names`.
    """
    # One pass over each leaf gives the norm, too: its square is not finite where a value is not, or is above 1e19.
    squares = {name: jnp.square(leaf).sum() for name, leaf in _checked_leaves(losses, grads).items()}
    # Leaf by leaf, not by the global norm alone: the message of the run names the leaves.
    nonfinite = ~jnp.isfinite(jnp.stack(list(squares.values())))
    finite = ~nonfinite.any()
    norm = jnp.sqrt(sum(square for name, square in squares.items() if name not in losses))
    # A branch: a select on every leaf takes seven times as long to compile, three times as long to run, and the memory
    # of a second state.
    state = jax.lax.cond(finite, update, lambda state, *_: state, state, grads, norm, *operands)
    return state, {"grad_norm": norm, "finite": finite, "nonfinite_leaves": nonfinite}


def leaf_names(losses: tuple[str, ...], params: Any) -> list[str]:
    """Returns the names of the entries of `nonfinite_leaves`."""
    return list(_checked_leaves(dict.fromkeys(losses), params))


def _checked_leaves(losses: Mapping[str, Any], grads: Any) -> dict[str, Any]:
    # Sorted: inside jit the dicts of a tree are in another order than the caller's.
    return {**losses} | {f"gradient of {name}": leaf for name, leaf in sorted(flat_names(grads).items())}
