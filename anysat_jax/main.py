"""Runs a job of AnySat: pretraining, fine-tuning, probing or evaluation, given by a config.

Pretrain a tiny model on the embedded data, in minutes:
  python -m anysat_jax.main --config=configs/pretrain.py
The same on your copy of TreeSatAI-TS:
  python -m anysat_jax.main --config=configs/pretrain.py:treesatai_ts --config.data.root=DIR
Fine-tune a pretrained model, or probe it with a linear layer on frozen features:
  python -m anysat_jax.main --config=configs/finetune.py:mini_flair --config.init=RUN
  python -m anysat_jax.main --config=configs/probe.py:mini_flair --config.init=RUN
Evaluate a finished fine-tuning run, on another split or with several patch sizes:
  python -m anysat_jax.main --config=configs/evaluate.py:mini_flair --config.init=RUN
Print the number of parameters of each part of a model:
  python -m anysat_jax.main --config=configs/pretrain.py:geoplex --config.job=describe

RUN is the workdir of a run, an exported .safetensors, a published .pth, one of these on the Hugging Face Hub
(hf:ORGANISATION/NAME[@REVISION][/FILE]), or none (random initial weights).

The name of a config follows the colon. The docstring of each file in configs/ lists the names, with hardware, time and
expected score. Every value can be overridden: --config.model.dim=128 --config.total_steps=1000 --config.seed=1.

Results are written to --workdir: checkpoints/, metrics.csv, tensorboard/, report/, summary.json; for fine-tuning and
probing also evaluation.csv, best/ and model.safetensors. The same command on the same workdir resumes the run.

Exit codes: 0 success; 1 an error, reported in one sentence; 75 stopped by SIGTERM, or by Ctrl-C after saving, or a step
hung: start the same command again; 130 Ctrl-C where there was nothing to save. Several processes end together, by 75.

On several hosts, run the same command on each, with a --workdir that all of them see, and with --processes=auto (on
Cloud TPU, SLURM, Open MPI) or --processes=HOST:PORT,COUNT,INDEX; $ANYSAT_PROCESSES is the default. To try several
processes on one machine: `python -m launch.local`.

Jobs (--config.job): pretrain, finetune, probe, evaluate, describe.
"""

import difflib
import hashlib
import importlib
import logging as python_logging
import os
import pathlib
import platform
import re
import runpy
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from anysat_jax import EXIT_INTERRUPTED, configs
from anysat_jax.errors import ConfigError, Preempted, RunError, complain, printable
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import parameter_table
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.train import config as settings
from anysat_jax.train import distributed
from anysat_jax.train.record import versions
from anysat_jax.train.workdir import EXIT_STOPPED, answer_signal, end_soon_on_interrupt, lock_workdir

EXIT_ERROR = 1
CONFIG_FILES = ("pretrain.py", "finetune.py", "probe.py", "evaluate.py")
# Begins of the names that every config has; the jobs check the values.
COMMON = ("job", "name", "data.root", "data.num_workers", "data.datasets.", "model.", "mesh.", "optimizer.")
OWN_PACKAGES = ("anysat_jax", "data_pipelines")
OWN_PLACES = ("data.root", "data.num_")  # prefixes of values that may differ between hosts

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config: FILE.py or FILE.py:NAME.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the results; an unfinished run in it is resumed. Default: runs/<name>-<time>."
)
_PROCESSES = flags.DEFINE_string(
    "processes",
    os.environ.get(distributed.VARIABLE, ""),
    "The run's other processes: none, auto, or HOST:PORT,COUNT,INDEX. Default: $ANYSAT_PROCESSES.",
)


# Module and function of each job, called with the config and the workdir. Names, not imports: a mistake of the command
# line is reported without waiting for data libraries.
JOBS = {
    "pretrain": ("anysat_jax.pretrain.train", "pretrain"),
    "finetune": ("anysat_jax.downstream.finetune", "finetune"),
    "probe": ("anysat_jax.downstream.finetune", "finetune"),
    "evaluate": ("anysat_jax.downstream.evaluate", "evaluate"),
}


def run_job(config: ConfigDict) -> None:
    """Runs the config's job in --workdir, or continues it there.

    Raises:
      ConfigError: there is no such job.
      RunError: the job ended in a way that its user can mend.
    """
    known = [*JOBS, "describe"]
    if config.job not in known:
        raise ConfigError(f"unknown job {config.job!r}; jobs: {', '.join(known)}")

    def shared_facts() -> Mapping[str, Any]:  # what must agree between processes
        values = settings.flatten(settings.as_json(config))
        common = {f"config.{name}": value for name, value in values.items() if not name.startswith(OWN_PLACES)}
        return {**common, "workdir": _WORKDIR.value, "versions": versions()}

    distributed.check_same(shared_facts, "start all processes with the same command and code")
    if config.job in ("pretrain", "describe") and "pretrain" not in config:
        raise ConfigError(f"the job {config.job} takes a config of configs/pretrain.py, and {config.name!r} is not one")
    if config.job == "describe":
        print(describe(settings.model_config(config)))
        return
    if config.job == "pretrain":
        # Before the data libraries are imported, so that a wrong value is reported at once.
        PretrainConfig.read(config)
    keep_programs()
    with lock_workdir(choose_workdir(_WORKDIR.value, config.name)) as workdir:
        module, function = JOBS[config.job]
        getattr(importlib.import_module(module), function)(config, workdir)
    logging.info("done: %s", workdir)


TOTALS = ("projectors", "spatial", "combiner", "encoder", "predictor")


def describe(model: ModelConfig) -> str:
    """Returns a text table of the parameters of each part in millions, without allocating them."""
    table = parameter_table(model)
    rows = [(name.replace("_", " ", 1), table[name]) for name in table if name not in TOTALS]
    notes = {"projectors": " (all sensors)", "encoder": " (the model: projectors, spatial, combiner)"}
    rows += [(name + notes.get(name, ""), table[name]) for name in TOTALS]
    shared = 100 * (table["spatial"] + table["combiner"]) / table["encoder"]
    lines = [f"{label:<{max(len(label) for label, _ in rows)}}  {count / 1e6:8.2f} M" for label, count in rows]
    title = f"dim {model.dim}, depth {model.depth}, {model.num_heads} heads; predictor depth {model.predictor_depth}"
    return "\n".join([title, *lines, f"{shared:.1f} % of the encoder is shared by all sensors"])


def choose_workdir(given: str | None, name: str) -> pathlib.Path:
    """Returns the given folder, or a new one: runs/<name>-<time>.

    Raises:
      ConfigError: it is an address, or none was given to several processes, which must share one.
    """
    if given and "://" in given:
        raise ConfigError(f"--workdir={given} is an address; mount the bucket (gcsfuse) and give the folder's path")
    if given:
        return pathlib.Path(given).absolute()
    if jax.process_count() > 1:
        raise ConfigError(f"{jax.process_count()} processes must share a workdir: give --workdir")
    new = pathlib.Path("runs").absolute() / f"{name or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
    # Two runs may start in the same second, and a clock may be set back.
    while new.exists():
        new = new.with_name(f"{new.name}-again")
    return new


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache, so that the next start loads them.

    $JAX_COMPILATION_CACHE_DIR names another folder; $JAX_ENABLE_COMPILATION_CACHE=0 switches it off.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        # Programs for a CPU run on that CPU only, and a home may be shared by many machines.
        cpu, info = platform.processor(), pathlib.Path("/proc/cpuinfo")
        if info.exists():
            cpu = next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
        machine = hashlib.sha256(f"{platform.platform()} {cpu}".encode()).hexdigest()[:12]
        jax.config.update("jax_compilation_cache_dir", str(cache / "anysat_jax" / "programs" / machine))


def check_overrides(names: list[str], config: ConfigDict) -> None:
    """Refuses overrides, by dotted names such as "model.dim", of values that the config does not have.

    Raises:
      ConfigError: one is not there; the message names those that come close.
    """
    known = list(settings.flatten(config))
    for name in names:
        if name in known:
            continue
        inside = [other for other in known if other.startswith(f"{name}.")]
        if inside:
            raise ConfigError(f"--config.{name} is a section; set one of its values: {', '.join(inside)}")
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}?" if close else f"it has: {', '.join(known)}"
        raise ConfigError(f"the config has no value {name!r} (--config.{name}); {hint}")


def parse(argv: list[str]) -> list[str]:
    """Reads the command line.

    Raises:
      ConfigError: the config is missing or wrong, or there is an argument that is not a flag.
    """
    names = [match[1] for arg in argv[1:] if (match := re.match(r"--?(?:no)?config\.([\w.]+)", arg))]
    place = max((i for i, arg in enumerate(argv) if i and re.match(r"--?config(=|$)", arg)), default=None)
    if place is None and names:
        raise ConfigError(f"--config.{names[0]} needs a config: give --config=configs/pretrain.py too")
    if place is not None:
        _, equals, value = argv[place].partition("=")
        end = place + (1 if equals else 2)
        spec = find_config(value if equals else "".join(argv[place + 1 : end]))
        # absl would refuse an unknown value too, but with a traceback and without the names that come close.
        check_overrides(names, load_config(spec))
        argv = [*argv[:place], f"--config={spec}", *argv[end:]]
    rest = app.parse_flags_with_usage(argv)
    if len(rest) > 1:
        raise ConfigError(f"unexpected positional argument {rest[1]!r}; everything is given by flags, see --help")
    return rest


def find_config(spec: str) -> str:
    """Returns FILE.py or FILE.py:NAME with a file that exists: the user's own, or one of this package.

    `spec` is the value of --config; a bare NAME is looked up in pretrain.py.

    Raises:
      ConfigError: there is no such file.
    """
    path, colon, name = spec.partition(":")
    if pathlib.Path(path).is_file():
        return spec
    folder = pathlib.Path(next(iter(configs.__path__)))
    if not path.endswith(".py") and "/" not in path:
        return f"{folder / 'pretrain.py'}:{spec}"
    if path.removeprefix("configs/") in CONFIG_FILES:
        return f"{folder / path.removeprefix('configs/')}{colon}{name}"
    raise ConfigError(
        f"there is no config file {path!r} in {pathlib.Path.cwd()}; --config takes FILE.py or FILE.py:NAME, "
        f"with a file of yours or {', '.join(CONFIG_FILES)} of this package"
    )


def load_config(spec: str) -> ConfigDict:
    """Returns the config of FILE.py or FILE.py:NAME, without overrides.

    Raises:
      ConfigError: there is no such file, it cannot be run, or it has no config of that name.
    """
    path, colon, name = find_config(spec).partition(":")
    try:
        config = runpy.run_path(path)["get_config"](*([name] if colon else []))
        names = settings.flatten(config)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except Exception as error:  # any: the file may be the user's own
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} does not define a get_config() that returns a config ({reason}); mend it") from error
    if lacking := [begin.rstrip(".") for begin in COMMON if not any(name.startswith(begin) for name in names)]:
        raise ConfigError(f"the config of {path} has no {', '.join(lacking)}; start from one of configs/pretrain.py")
    return config


def _is_own_or_warning(record: python_logging.LogRecord) -> bool:
    # orbax logs the traceback of an error that it raises later on, where it becomes one sentence.
    if "/orbax/" in record.pathname and record.exc_info:
        return False
    own = any(f"/{package}/" in record.pathname for package in OWN_PACKAGES)
    return own or record.levelno >= python_logging.WARNING


class _PrintableFormatter(python_logging.Formatter):
    def format(self, record: python_logging.LogRecord) -> str:
        return printable(super().format(record))


def quiet_logs() -> None:
    """Shows each message on a short line, and of the libraries warnings only."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(_PrintableFormatter("%(levelname).1s %(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_is_own_or_warning)


def main(argv: list[str]) -> int:
    """Joins the other processes and runs the job of --config. Returns the exit code."""
    del argv
    quiet_logs()
    end_soon_on_interrupt()
    code = 0
    try:
        if _CONFIG.value is None:
            raise ConfigError("give a config: --config=configs/pretrain.py (see --help)")
        distributed.start(_PROCESSES.value)
        run_job(_CONFIG.value)
    except Preempted as stop:
        logging.warning("%s", stop)
        code = EXIT_STOPPED
    except RunError as error:
        code = complain(error)
    except KeyboardInterrupt as stop:
        code = answer_signal(*stop.args)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        # The other processes are in the middle of a step: an exit by the exception would wait for them.
        traceback.print_exc()
        code = EXIT_ERROR
    return distributed.shutdown(code)


def parse_or_exit(argv: list[str], program: str = "anysat_jax") -> list[str]:
    """Reads the command line as `parse`, and exits with a sentence about a mistake."""
    try:
        return parse(argv)
    except ConfigError as error:
        sys.exit(complain(error, program))


def run() -> None:
    """The command line."""
    try:
        app.run(main, flags_parser=parse_or_exit)
    except SystemExit as end:
        if end.code in (EXIT_STOPPED, EXIT_INTERRUPTED):
            distributed.exit_now(end.code)  # Python would wait for programs that threads compile, for minutes
        raise


if __name__ == "__main__":
    run()
