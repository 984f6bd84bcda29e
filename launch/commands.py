"""Commands of other tools: shown as they could be typed, and run unless only asked to show them."""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

from anysat_jax.train.errors import RunError


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words before and after the first `--`: an action's own, and those that go on to another program."""
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def bucket(text: str) -> str:
    """A bucket's name, as a word of a command line.

    Raises:
      ArgumentTypeError: no bucket can have this name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+[A-Za-z0-9]", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot name a bucket; give the name alone, without gs:// and folders"
        )
    return text


class Commands:
    """Runs commands, or prints them.

    Args:
      dry_run: print, run nothing.
    """

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run

    def run(self, *words: str) -> None:
        """Runs a command, its output going where this process's goes.

        Raises:
          RunError: it is not installed, or it failed.
        """
        self._start(words, capture=False)

    def ask(self, *words: str) -> str | None:
        """What a command prints, without blanks around; None if it is only shown.

        Raises:
          RunError: it is not installed, or it failed.
        """
        answer = self._start(words, capture=True)
        return answer.strip() if answer is not None else None

    def _start(self, words: Sequence[str], capture: bool) -> str | None:
        line = shlex.join(words)
        if self.dry_run:
            print(line)
            return None
        print(f"+ {line}", file=sys.stderr)
        try:
            done = subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE if capture else None)
        except FileNotFoundError:
            raise RunError(f"{words[0]} is not installed, or not on the PATH") from None
        except subprocess.CalledProcessError as error:
            raise RunError(f"{words[0]} ended with exit code {error.returncode}: {line}") from None
        return done.stdout
