"""A jitted function that is compiled before it is called, and tells while it does: compiling is no hanging."""

from collections.abc import Callable, Hashable
from typing import Any

import jax


class Compiled:
    """Compiles a function for each kind of arguments that it is called with, and keeps the programs."""

    def __init__(self, function: Callable[..., Any], **options: Any):
        """Takes a traceable function of arrays, and options of `jax.jit`."""
        self._function = jax.jit(function, **options)
        self._programs: dict[Hashable, Any] = {}
        self.compiling = False  # read by the watchdog's thread

    def __len__(self) -> int:
        """How many programs there are."""
        return len(self._programs)

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function; the first time with such structure, shapes, dtypes and places, compiles it."""
        leaves, structure = jax.tree.flatten(arguments)
        kind = structure, tuple((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves)
        if kind not in self._programs:
            self._programs[kind] = self._compile(arguments)
        return self._programs[kind](*arguments)

    def _compile(self, arguments: tuple[Any, ...]) -> Any:
        self.compiling = True
        try:
            return self._function.lower(*arguments).compile()
        finally:
            self.compiling = False
