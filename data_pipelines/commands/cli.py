"""Reads the command line, runs the command, and turns errors that a user can mend into one line."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from data_pipelines.commands import fake_archive, list_datasets, look_at_tiles, prepare_archive, show_card

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130
COMMANDS = (list_datasets, show_card, prepare_archive, look_at_tiles, fake_archive)

DESCRIPTION = """\
From downloaded archives to what models train on.

Which datasets there are; all about one of them, and where to get it:
  python -m data_pipelines list
  python -m data_pipelines show sen1floods11
Whether your download is read the way it was meant:
  python -m data_pipelines look sen1floods11 --source DIR --out pictures
Convert it once, and read it quickly ever after:
  python -m data_pipelines prepare sen1floods11 --source DIR --out prepared
No download yet? Try all that on a made-up archive:
  python -m data_pipelines fake sen1floods11 --out DIR

NAME is a dataset's name, or the path of a description of your own folder of tiles, FILE.toml (see docs/DATA.md).
"""
EPILOG = "Each command explains itself: python -m data_pipelines COMMAND --help. Exit codes: 0 done, 1 error, 2 usage."


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the chosen one's `run` is in the result."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        summary, _, examples = command.HELP.partition("\n")
        sub = commands.add_parser(
            command.NAME, help=summary, description=summary, epilog=examples.strip("\n"), formatter_class=raw
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs a command.

    Args:
      arguments: the words after `python -m data_pipelines`.

    Returns:
      The exit code: 0 done, 1 an error, said in one line on standard error. Wrong usage exits with 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # names of people and classes, where a terminal has fewer letters
    parsed = make_parser().parse_args(arguments)
    try:
        parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` or a pager, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(_words(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _words(error: Exception) -> str:
    """What an error says, without the number that systems give it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)
