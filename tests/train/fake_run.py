"""The command line on a fake dataset, in a process of its own, with accidents on demand.

python fake_run.py FLAGS...; $FAKE_ROOT is where the data are prepared. $FAKE_SIGNAL=15@7 sends signal 15 when step 7 is
logged. $FAKE_NAN=7,9 spoils the batches of steps 7 and 9. $FAKE_HANG=7 never comes back from step 7.
"""

import dataclasses
import os
import time

import numpy as np
from ml_collections import ConfigDict

from anysat_jax import main
from anysat_jax.configs import common, pretrain
from anysat_jax.train.metrics_log import MetricsLog
from data_pipelines import load, registry
from data_pipelines.reader import DatasetEntry
from tests.data_pipelines.fake_reader import CARD, FakeReader

SENSORS = ("spot", "s2")
FAKE_CARD = dataclasses.replace(
    CARD, name="fake_run", sensors=SENSORS, arrays={"spot": "uint8", "s2": "uint16"}, masks={"s2": "pixel"}
)


class SmallReader(FakeReader):
    """The fake tiles with two of their sensors."""

    card = FAKE_CARD

    def example(self, split, key):
        example = super().example(split, key)
        return {name: value for name, value in example.items() if not name.startswith(("s1-asc", "modis"))}


def get_config() -> ConfigDict:
    """The smallest model, twenty steps; no dropout, a quarter of the compile time: tiny_mini has it."""
    config = pretrain.mini()
    config.name = "fake"
    config.total_steps = 20
    config.checkpoint_every = 10
    config.model.update(dict(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=SENSORS))
    config.data.root = os.environ.get("FAKE_ROOT", "")
    config.data.datasets = ConfigDict(dict(fake_run=common.dataset(4, (10, 20), 4)))
    config.evaluate.probe = False
    return config


def register() -> None:
    """Makes the dataset known."""
    sizes = {"train": 7, "val": 3}
    registry._ENTRIES[FAKE_CARD.name] = lambda: DatasetEntry(FAKE_CARD, generate=lambda: SmallReader(sizes))


def send_signal(number: int, at: int) -> None:
    """Sends this process a signal right after a step was logged."""
    write = MetricsLog.write

    def write_and_send(self, step, *rest):
        write(self, step, *rest)
        if step == at:
            os.kill(os.getpid(), number)

    MetricsLog.write = write_and_send


def hang(at: int) -> None:
    """Never comes back from writing the log of a step."""
    write = MetricsLog.write

    def write_and_hang(self, step, *rest):
        write(self, step, *rest)
        while step == at:
            time.sleep(1)

    MetricsLog.write = write_and_hang


def spoil_batch(at: list[int]) -> None:
    """Puts one NaN into the batches of some steps."""
    train_iterator = load.train_iterator

    def spoiling(*args, **kwargs):
        iterator = train_iterator(*args, **kwargs)
        advance = iterator.__class__.__next__

        class Spoiling(iterator.__class__):
            def __next__(self):
                step = self.get_state()["next_step"] + 1
                batch = advance(self)
                if step in at:
                    spot = batch.observations["spot"]
                    values = np.array(spot.values)
                    values[0, 0, 0, 0] = np.nan
                    batch = batch.replace(observations={**batch.observations, "spot": spot.replace(values=values)})
                return batch

        iterator.__class__ = Spoiling
        return iterator

    load.train_iterator = spoiling


if __name__ == "__main__":
    register()
    if "FAKE_SIGNAL" in os.environ:
        send_signal(*map(int, os.environ["FAKE_SIGNAL"].split("@")))
    if "FAKE_NAN" in os.environ:
        spoil_batch([int(step) for step in os.environ["FAKE_NAN"].split(",")])
    if "FAKE_HANG" in os.environ:
        hang(int(os.environ["FAKE_HANG"]))
    main.run()
