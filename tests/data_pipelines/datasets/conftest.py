"""What the tests of several archives share."""

import os
import shutil

import pytest


@pytest.fixture
def archive(written, tmp_path):
    """The archive, linked: a test that changes a file writes it anew."""
    root = tmp_path / "raw"
    shutil.copytree(written, root, copy_function=os.link)
    return root
