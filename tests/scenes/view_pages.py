"""What a page of `anysat view` has in it, as numbers."""

import base64
import gzip
import io
import json
import re

import numpy as np
from matplotlib import image


def scene_of(page):
    """The data of the page's script."""
    return json.loads(re.search(r'<script type="application/json" id="scene">(.*?)</script>', page, re.DOTALL)[1])


def unpacked(text, dtype):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype)


def pixels(layer):
    """A picture of the page, (H, W, 4) of uint8."""
    return np.rint(255 * image.imread(io.BytesIO(base64.b64decode(layer["picture"])))).astype(np.uint8)


def shown(panel, scene, band=0):
    """The numbers of a panel, NaN where the page has no data."""
    layer = panel["layers"][band]
    steps = unpacked(layer["values"], "<u2").reshape(scene["rows"], scene["columns"])
    return np.where(steps > 0, layer["low"] + layer["step"] * (steps - 1.0), np.nan)


def features_of(search, scene):
    """Directions of the embedding, as the page has them: (H, W, k + 1), up to a rotation."""
    stored = unpacked(search["values"], np.int8).reshape(scene["rows"], scene["columns"], -1)
    components = stored * np.asarray(search["steps"]) + search["lean"]
    rest = np.sqrt(max(search["base"] - np.square(search["lean"]).sum(), 0))
    return np.concatenate([components, np.full((*stored.shape[:2], 1), rest)], -1), stored[..., 0] != -128
