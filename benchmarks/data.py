"""Compares batches from prepared records with batches from raw files, decoded tile by tile, on two cores.

    python benchmarks/data.py                           # every case, minutes
    python benchmarks/data.py --cases treesatai_ts --tiles 64
    python benchmarks/data.py --spot-compression lzw    # of PASTIS-HD's SPOT images; that of the real files is unknown

Writes archives in the published layouts, with the real archives' sizes and numbers of dates, prepares them, and runs
the same pipeline on both: same tiles, same transforms, equal batches. Files and records are in the page cache. The
results are in docs/PERFORMANCE.md.
"""

import argparse
import dataclasses
import importlib
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

# Before JAX is imported; and a script has its own folder on the path, not the repository.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import grain
import h5py
import jax
import numpy as np
import rasterio

from anysat_jax.batch import Batch
from data_pipelines.batches import BatchMaker
from data_pipelines.card import Example
from data_pipelines.options import DatasetOptions, Sampling
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.shards import read_tile
from data_pipelines.prepared import PreparedDataset
from data_pipelines.reader import DatasetEntry
from data_pipelines.registry import get_entry
from data_pipelines.sampler import Stream, mixture
from data_pipelines.transforms import TileTransform
from data_pipelines.windows import Block

ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table; `dates` are the numbers of dates of each series, where the fake archive takes them."""

    dataset: str
    dates: dict[str, int]
    batch_size: int
    sampling: Sampling

    @property
    def label(self) -> str:
        extent = get_entry(self.dataset).card.extent
        part = f", windows of {self.sampling.extent:g} m" if self.sampling.extent else f", tiles of {extent:g} m"
        return f"{self.dataset}{part}, {self.sampling.max_dates} dates"


TREESAT_DATES, PASTIS_DATES = {"s2": 146, "s1-asc": 60}, {"s2": 43, "s1": 70}
CASES = {
    "treesatai_ts": Case("treesatai_ts", TREESAT_DATES, 16, Sampling(max_dates=70)),
    "pastis_hd": Case("pastis_hd", PASTIS_DATES, 4, Sampling(max_dates=20)),
    "pastis_hd,320": Case("pastis_hd", PASTIS_DATES, 16, Sampling(max_dates=20, extent=320.0)),
    # Dates as the fakes have them: FLAIR has more, but its series are a small part of its values.
    "flair": Case("flair", {}, 12, Sampling(max_dates=35)),
    "planted": Case("planted", {}, 64, Sampling(max_dates=60)),
    "s2naip": Case("s2naip", {}, 4, Sampling(max_dates=32)),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--tiles", type=int, default=24, help="of each archive")
    parser.add_argument("--seconds", type=float, default=2.0, help=f"of each of {ROUNDS} rounds, for each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--spot-compression", default="none", choices=["none", "lzw", "deflate"])
    return parser.parse_args()


def make_archive(folder: pathlib.Path, case: Case, tiles: int, spot_compression: str) -> None:
    """Writes a fake archive with noise that makes it compress like real data."""
    fake = importlib.import_module(f"data_pipelines.fakes.{case.dataset}")
    fake.write_archive(
        folder, {"train": tiles, "val": 0, "test": 0}, **({"num_dates": case.dates} if case.dates else {})
    )
    compress = {} if spot_compression == "none" or case.dataset != "pastis_hd" else {"compress": spot_compression}
    for path in sorted(folder.rglob("*.tif")):
        with rasterio.open(path) as file:
            values, old = file.read(), file.profile
        if len(values) > 1:  # of a single band are classes
            kept = {key: value for key, value in old.items() if not key.startswith("block")}
            with rasterio.open(path, "w", **{**kept, "interleave": "pixel", "tiled": False, **compress}) as file:
                file.write(rough(values, 0.5 if values.dtype.kind == "f" else 6.0))
    for path in sorted(folder.glob("DATA_*/*.npy")):
        values = np.load(path)
        missing = values == -10_000
        np.save(path, np.where(missing, values, rough(values, 0.5 if values.dtype.kind == "f" else 60.0)))
    for path in sorted(folder.rglob("*.h5")):
        with h5py.File(path, "r+") as file:
            for name, deviation, least in (("sen-2", 60.0, 1), ("sen-1-asc", 0.01, 1e-4), ("sen-1-des", 0.01, 1e-4)):
                values = rough(file[f"{name}-data"][()], deviation)
                file[f"{name}-data"][...] = np.maximum(least, values.round() if name == "sen-2" else values)


def rough(values: np.ndarray, deviation: float) -> np.ndarray:
    """Adds normal noise to values, in their dtype; bytes and digital numbers stay above zero."""
    noisy = values + np.random.default_rng(values.size).normal(0, deviation, values.shape[1:]).astype(np.float32)
    return np.clip(noisy, 1, 255).astype(np.uint8) if values.dtype == np.uint8 else noisy.astype(values.dtype)


@dataclasses.dataclass(frozen=True)
class Raw:
    """Training tiles of an archive, decoded at each access."""

    reader: Any

    def __len__(self) -> int:
        return len(self.reader.keys("train"))

    def __getitem__(self, index: int) -> Example:
        return read_tile(self.reader, "train", self.reader.keys("train")[index])

    def blocks(self, index: int, numbers: Sequence[int]) -> list[Block]:
        """Reads the whole tile, as raw files cannot be read by blocks."""
        return [Block(self[index], self.reader.card.extent)]


def batches_of(source: Any, prepared: Any, case: Case, threads: int) -> Iterator[Batch]:
    """Iterates over batches of the training pipeline on a source of examples."""
    card = prepared.card
    maker = BatchMaker(source, TileTransform(card, prepared.statistics, case.sampling))
    patch_sizes = tuple(size for size in card.patch_sizes if size <= (case.sampling.extent or card.extent))[-1:]
    options = DatasetOptions(card, case.batch_size, 1, patch_sizes, case.sampling)
    stream = Stream(len(source), options, maker.training, seed=0)
    dataset = mixture([stream], 0).to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    return iter(dataset)


def rates_of(batches: Any, seconds: float) -> tuple[float, float]:
    """Measures batches per second of a warm iterator and CPU seconds per batch; closes the iterator."""
    # The first batches open files, import packages and fill the buffers.
    next(batches), next(batches)
    start, cpu_start, count = time.perf_counter(), time.process_time(), 0
    while (passed := time.perf_counter() - start) < seconds:
        next(batches)
        count += 1
    cpu = time.process_time() - cpu_start
    batches.close()
    # Batches that were begun ahead would slow what is measured next.
    time.sleep(0.3)
    return count / passed, cpu / count


HEADER = (
    "| case | raw, samples/s | prepared, samples/s | prepared, MB/s | ratio | CPU ms per sample, raw / prepared | "
    "ratio | memory, GB |\n|---|---|---|---|---|---|---|---|"
)


def measure(case: Case, arguments: argparse.Namespace, folder: pathlib.Path) -> str:
    """Prepares an archive, runs both pipelines in turn, and returns the row of the table."""
    entry: DatasetEntry = get_entry(case.dataset)
    make_archive(folder / "raw", case, arguments.tiles, arguments.spot_compression)
    reader = entry.open_reader(folder / "raw")
    prepared = PreparedDataset.open(entry.card, prepare_dataset(reader, folder / "prepared", entry.version))
    sources = {"raw": Raw(reader), "prepared": prepared.records("train")}

    def batches(name: str) -> Any:
        return batches_of(sources[name], prepared, case, arguments.threads)

    jax.tree.map(np.testing.assert_array_equal, next(batches("raw")), next(batches("prepared")))
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    # Raw and prepared alternate, so that other work on the machine slows both.
    for _ in range(ROUNDS):
        for name in sources:
            rates[name].append(rates_of(batches(name), arguments.seconds))
    raw, fast = (case.batch_size * statistics.median(one for one, _ in some) for some in rates.values())
    cpu_raw, cpu_fast = (1e3 * statistics.median(one for _, one in some) / case.batch_size for some in rates.values())
    arrays = [value for value in sources["prepared"][0].values() if isinstance(value, np.ndarray)]
    part = (case.sampling.extent or entry.card.extent) / entry.card.extent
    megabytes = sum(array.nbytes for array in arrays) / 1e6 * part**2  # as stored, with all dates
    epoch = memory_of_an_epoch(batches("prepared"), max(20, arguments.tiles // case.batch_size))
    memory = " / ".join(f"{one:.2f}" for one in epoch)
    return (
        f"| {case.label} | {raw:.0f} | {fast:.0f} | {fast * megabytes:.0f} | **{fast / raw:.1f}** | "
        f"{cpu_raw:.1f} / {cpu_fast:.1f} | **{cpu_raw / cpu_fast:.1f}** | {memory} |"
    )


def memory_of_an_epoch(batches: Iterator[Batch], count: int) -> tuple[float, ...]:
    """Returns the resident memory in GB at the beginning, in the middle and at the end of `count` batches."""
    next(batches), next(batches)
    memory = []
    for steps in (0, count // 2, count - count // 2):
        for _ in range(steps):
            next(batches)
        memory.append(int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9)
    return tuple(memory)


def main() -> None:
    arguments = parse_arguments()
    print(f"{arguments.threads} threads, {arguments.tiles} tiles, SPOT compression: {arguments.spot_compression}")
    print(HEADER)
    for name in arguments.cases:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(CASES[name], arguments, pathlib.Path(folder)), flush=True)


if __name__ == "__main__":
    main()
