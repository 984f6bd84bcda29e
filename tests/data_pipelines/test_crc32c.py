"""The checksum of TFRecord files against published values and another implementation."""

import numpy as np
import pytest
from tensorboardX.crc32c import crc32c as other_crc32c

from data_pipelines.archives import crc32c, masked, masked_crcs


@pytest.mark.parametrize(
    ("content", "checksum"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"", 0),
    ],
)
def test_published_values(content, checksum):
    assert crc32c(content) == checksum


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129, 1000, 5000])
def test_every_length(length):
    content = np.random.default_rng(length).bytes(length)
    assert crc32c(content) == other_crc32c(content)


def test_many_at_once():
    rows = np.random.default_rng(0).integers(0, 256, (50, 8), dtype=np.uint8)
    assert masked_crcs(rows).tolist() == [masked(crc32c(row.tobytes())) for row in rows]
    assert masked_crcs(rows[:0]).shape == (0,)
