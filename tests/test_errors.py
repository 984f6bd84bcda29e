"""Errors as the command line prints them."""

import logging

import pytest

from anysat_jax.errors import ConfigError, complain, printable, reason
from anysat_jax.main import _PrintableFormatter


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a b\n\tc é 日", "a b\n\tc é 日"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x9b2J\x7f\r", r"\x9b2J\x7f\r"),
        ("a\u202eb\udc80", r"a\u202eb\udc80"),
        (ConfigError("model.\x1b is 3"), r"model.\x1b is 3"),
    ],
)
def test_a_terminal_never_gets_control_characters(capsys, text, printed):
    assert printable(text) == printed
    assert complain(text, "x") == 1
    assert capsys.readouterr().err == f"x: {printed}\n"
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "%s", (text,), None)
    assert _PrintableFormatter("%(message)s").format(record) == printed


def test_errors_of_the_system_are_sentences(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises((FileExistsError, NotADirectoryError)) as caught:
            path.mkdir(parents=True, exist_ok=True)
        assert reason(caught.value) == f"{tmp_path / 'file'} is a file, and a folder is needed there"
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "none").read_text()
    assert reason(caught.value) == f"No such file or directory: {tmp_path / 'none'}"
    assert reason(OSError("a\nb")) == "a\nb" and reason(ValueError("a")) == "a"
