"""An encoder that is traced and not compiled, for jobs of which it is not what is tested."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from anysat_jax.downstream.network import Network

SHAPES = {}  # of features


def features_shape(network, variables, batch, options):
    """The encoder is traced once for tiles of one shape, however many there are of them."""
    tiles = tuple((name, one.values.shape[1:]) for name, one in batch.observations.items())
    key = network, batch.patch_size, tiles, options.get("training", ()), options.get("drop_path", 0.0)
    if key not in SHAPES:
        traced = functools.partial(nn.Module.apply, network, method=Network.features, **options)
        SHAPES[key] = jax.eval_shape(traced, variables, batch).shape[1:]
    return batch.batch_size, *SHAPES[key]


def trace_encoder(network, variables, batch, method=Network.__call__, **options):
    """Stands for `Network.apply`: the encoder is traced, for the shape of its features, and the head is applied to the
    mean of each tile's values in their place."""
    apply = functools.partial(nn.Module.apply, network, variables)
    shape = features_shape(network, variables, batch, options)
    means = sum(jnp.nan_to_num(one.values).mean(range(1, one.values.ndim)) for one in batch.observations.values())
    features = jnp.broadcast_to(means.reshape(-1, *[1] * (len(shape) - 1)), shape)
    return features if method == Network.features else apply(features, method=lambda whole, given: whole.head(given))
