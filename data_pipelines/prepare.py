"""From a reader to ArrayRecord files, written through TFDS without TensorFlow, with statistics and a report.

A prepared dataset is a folder `<base>/<name>/<version>` in TFDS' layout, with its card, plan, statistics and report. It
grows shard by shard in a working folder and is renamed when whole, so that whatever carries its name can be read, and
a run that ended early loses no finished shard.
"""

import contextlib
import errno
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines import card_json
from data_pipelines.card import DatasetCard, Reader
from data_pipelines.contents import check_contents
from data_pipelines.features import check_card
from data_pipelines.output import LocalOutput, Output
from data_pipelines.places import is_url, to_stderr
from data_pipelines.plan import FILE_NAME, Plan, chosen_keys, plan_facts
from data_pipelines.preparation import Preparation, Say
from data_pipelines.prepared import prepared_folder
from data_pipelines.remote import RemoteOutput
from data_pipelines.statistics import SPLIT

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROKEN = (errno.EIO, errno.EREMOTEIO)
_CANNOT_WRITE = (*_FULL, *_BROKEN, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def prepare_dataset(
    reader: Reader,
    base: pathlib.Path | str,
    version: str,
    *,
    workers: int = 0,
    limit: int | None = None,
    skip_bad: bool = False,
    source: str | None = None,
    say: Say = to_stderr,
) -> pathlib.Path | str:
    """Writes a reader's examples below `base` unless they are there already.

    A run that was killed or failed leaves its finished shards, and the next one with the same arguments goes on from
    them; of leftovers with other arguments nothing is taken. The result does not depend on `workers` or on
    interruptions. Two processes may call this at once: the second waits and finds the first one's work.

    Args:
      reader: where the examples come from.
      base: folder, or fsspec's address of one ("gs://bucket/folder"), that gets `<name>/<version>`.
      version: "major.minor.patch" of the reader's output.
      workers: processes that write shards; 0: this process does. A script that asks for some must be importable, with
        `if __name__ == "__main__":` around what it does.
      limit: takes only the first tiles of each split, and says so in the report and in the description. A later run
        with another limit, or none, replaces the result.
      skip_bad: leaves out tiles that cannot be read or are not as the card promises, and reports them.
      source: where the raw data are, for the report.
      say: is told what happens, and the report at the end.

    Returns:
      The prepared folder; its address where `base` is one.

    Raises:
      OSError: it cannot be written, the disk is full, or a worker process died; finished shards stay.
      ValueError: a tile is not as it should be (finished shards stay), there is no tile to take statistics from, or
        what is there already is of other tiles, of another card, or without a limit.
    """
    card = reader.card
    check_card(card)
    if workers < 0:
        raise ValueError(f"workers is {workers}; it must be 0 (this process) or more")
    keys = chosen_keys(reader, limit)
    facts = plan_facts(reader, version, keys, limit, source)
    if SPLIT not in keys:
        raise ValueError(f"dataset {card.name!r}: no tile of split {SPLIT!r}, which the statistics are taken from")
    with _explained(card.name, base):
        output = _open_output(base, card.name, version)
        if not is_finished(output, card, facts):
            _run(Preparation(reader, keys, facts, output, workers=workers, skip_bad=skip_bad, say=say))
    return output.target


def _open_output(base: pathlib.Path | str, name: str, version: str) -> Output:
    if is_url(base):
        return RemoteOutput(str(base), name, version)
    return LocalOutput(prepared_folder(pathlib.Path(base), name, version))


def _run(preparation: Preparation) -> None:
    output, card, facts = preparation.output, preparation.reader.card, preparation.facts
    try:
        with output.lock():
            if is_finished(output, card, facts):  # another process did it while this one waited
                output.clear()
            else:
                preparation()
    except OSError:
        # Without locks, another process may have finished the same work and renamed the folder under our hands.
        if not is_finished(output, card, facts):
            raise


def is_finished(output: Output, card: DatasetCard, facts: Mapping[str, Any]) -> bool:
    """Whether the dataset is there as `facts` (see `plan_facts`) want it.

    Raises:
      ValueError: what is there is something else, and is not to be replaced without being asked.
      FileNotFoundError, ValueError: what is there lost a file, or one was changed.
    """
    if not output.is_whole():
        return False
    there = _plan_there(output).facts
    if there["limit"] not in (None, facts["limit"]):
        return False  # a sample of the data, which this run replaces
    if there["limit"] != facts["limit"]:
        raise ValueError(f"{output.target} holds all tiles, and a run with a limit does not replace it; {_REMEDY}")
    if there["card"] != facts["card"]:
        stored = (output.read_whole(card_json.FILE_NAME) or b"").decode(errors="replace")
        wanted = card_json.essentials(card)
        differences = "; ".join(card_json.differing(card_json.from_json(stored, str(output.target))[1], wanted))
        raise ValueError(f"{output.target} was prepared for another card of {card.name!r}: {differences}; {_REMEDY}")
    if there["keys"] != facts["keys"]:
        tiles = f"it was made of {there['tiles']}, now there are {facts['tiles']}"
        raise ValueError(f"{output.target} was prepared from other tiles ({tiles}); {_REMEDY}")
    if isinstance(output.target, pathlib.Path):
        check_contents(output.target)
    return True


_REMEDY = "delete it to prepare the dataset anew, or choose another folder"


def _plan_there(output: Output) -> Plan:
    content = output.read_whole(FILE_NAME)
    if content is None:
        raise ValueError(f"{output.target} was not prepared by this release: it has no {FILE_NAME}; {_REMEDY}")
    try:
        return Plan.from_json(content)
    except ValueError as error:
        raise ValueError(f"{output.target}/{FILE_NAME}: {error}; {_REMEDY}") from error


@contextlib.contextmanager
def _explained(name: str, base: pathlib.Path | str) -> Iterator[None]:
    """Says which dataset was to be written where, whatever the file system or the record writer complains about."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        reason = error.strerror or error
        what = f"dataset {name!r} cannot be written to {base}: {reason}; {_remedy(error.errno)}"
        raise OSError(error.errno, what) from error


def _remedy(number: int) -> str:
    place = "(--out; in training, $XDG_CACHE_HOME or --config.data.root)"
    if number in _FULL:
        return f"finished shards stay: free some space and start again, or choose a folder with space for it {place}"
    if number in _BROKEN:
        return f"finished shards stay: start again, or choose another folder {place}"
    return f"choose a folder that can be written {place}"
