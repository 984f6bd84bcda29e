"""The command line on the toy dataset, in a process of its own, with an accident on demand.

python adapt_run.py --config=adapt_run.py[:probe] FLAGS...; $TOY_ROOT is where the tiles are made. $TOY_KILL=7 kills the
process right after step 7 is logged.
"""

import os
import pathlib
import signal

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from anysat_jax import main
from anysat_jax.train.metrics_log import MetricsLog
from tests.downstream import adapt_toys


def get_config(name: str = "finetune") -> ConfigDict:
    """Three epochs of three steps, with dropout or with two patch sizes, so that there is something to resume."""
    config = adapt_toys.toy_config(pathlib.Path(os.environ.get("TOY_ROOT", ".")), job=name, mode=name, epochs=3)
    # Each patch size has a program: those of a probe are small.
    config.data.datasets.toy_fields.patch_sizes = (10, 20) if name == "probe" else (10,)
    config.model.drop_path = 0.1 if name == "finetune" else 0.0
    config.checkpoint_every = 2
    return config


def kill_at(at: int) -> None:
    """Kills this process right after a step was logged."""
    write = MetricsLog.write

    def write_and_die(self, step, *rest):
        write(self, step, *rest)
        if step == at:
            os.kill(os.getpid(), signal.SIGKILL)

    MetricsLog.write = write_and_die


if __name__ == "__main__":
    adapt_toys.register_toy()
    Figure.savefig = adapt_toys.save_unpainted
    if "TOY_KILL" in os.environ:
        kill_at(int(os.environ["TOY_KILL"]))
    main.run()
