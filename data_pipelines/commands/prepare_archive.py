"""`prepare`: converts an archive once into files that are quick to read."""

import argparse
import pathlib
import shlex

from data_pipelines.commands.source import a_folder, a_place, open_source
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.report import read_report, report_text
from data_pipelines.prepare.storage import is_url, to_stderr
from data_pipelines.registry import get_entry

NAME = "prepare"
HELP = """Converts a dataset once into ArrayRecord files that are quick to read, with its statistics.

  python -m data_pipelines prepare sen1floods11 --source ~/Sen1Floods11 --out prepared --workers 4
  python -m data_pipelines prepare pastis_hd --source ~/PASTIS-HD --out try --limit 20      a quick try
  python -m data_pipelines prepare my_tiles.toml --out prepared                             your own folder
  python -m data_pipelines prepare flair --source /shared/FLAIR --out /shared/prepared --cluster tcp://head:8786

An interrupted start goes on where it ended; a second one on the same folder changes nothing. A tile that cannot be read
stops the command and names its file; with --skip-bad it is left out and listed in the report.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """From where, to where, how much."""
    parser.add_argument("name", metavar="NAME", help="a dataset, or the path of a description, FILE.toml")
    parser.add_argument("--source", type=a_folder, metavar="DIR", help="folder of the download")
    parser.add_argument(
        "--out", type=a_place, required=True, metavar="DIR", help="gets NAME/VERSION; a folder or gs://..."
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read tiles (default: 0)")
    parser.add_argument("--cluster", metavar="ADDRESS", help="a Dask scheduler, whose workers read the tiles instead")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many tiles of each split")
    parser.add_argument("--skip-bad", action="store_true", help="leave out tiles that cannot be read, and list them")


def run(arguments: argparse.Namespace) -> None:
    """Prepares the dataset and says where it is and what to type next.

    Raises:
      ValueError, OSError, ImportError: no such dataset or folder, a tile that cannot be read, or no space.
    """
    entry = get_entry(arguments.name)
    source = arguments.source
    out = arguments.out if is_url(arguments.out) else pathlib.Path(arguments.out).expanduser()
    reader = open_source(entry, source)
    said: list[str] = []
    print(getattr(reader, "summary", f"{entry.card.name}: made by this project's code"))

    def say(line: str) -> None:
        said.append(line)
        print(line)

    try:
        folder = prepare_dataset(
            reader,
            out,
            entry.version,
            workers=arguments.workers,
            cluster=arguments.cluster,
            limit=arguments.limit,
            skip_bad=arguments.skip_bad,
            source=str(source or entry.source or ""),
            say=say,
        )
    except KeyboardInterrupt:
        to_stderr("finished shards stay; the same command goes on from there")
        raise
    if not said:
        _say_again(folder)
    name = entry.card.name
    print(f"\n{name} is prepared in {folder}\n\nNext:")
    root = shlex.quote(str(out))
    print(f"  python -m data_pipelines look {name} --root {root} --out pictures")
    print(f"  python -m anysat_jax.main --config=configs/pretrain.py:prepared,{name} --config.data.root={root}")


def _say_again(folder: pathlib.Path | str) -> None:
    """What a second run has to say: that nothing changed, and what the first one reported."""
    print("nothing to do: it was prepared before" + (", with this report" if isinstance(folder, pathlib.Path) else ""))
    if isinstance(folder, pathlib.Path):
        print(report_text(read_report(folder)))
