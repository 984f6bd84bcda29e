"""Principal axes of features."""

import numpy as np
from jaxtyping import Float64


def principal_axes(centred: Float64[np.ndarray, "N D"]) -> Float64[np.ndarray, "D D"]:
    """Returns the directions in which features vary, one in each row, those of largest variance first.

    Args:
      centred: features less their mean.
    """
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors.T[::-1]  # eigh sorts in ascending order
    # Eigenvectors have no sign; the largest entry of each is positive, so that none depends on the eigensolver.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return axes * np.sign(largest)
