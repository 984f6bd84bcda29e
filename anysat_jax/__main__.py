"""The command `anysat`: every program of this package by a short name.

Each command is also a module: `anysat data list` is `python -m data_pipelines list`. Named configs do not need a
checkout: `anysat train --config=geoplex` uses configs/pretrain.py:geoplex of this package.
"""

import runpy
import signal
import sys
from importlib.util import find_spec
from typing import NamedTuple

from anysat_jax import end_at_once


class Command(NamedTuple):
    """A command of `anysat`."""

    help: str  # what it does, in a line
    module: str  # the module, as for `python -m`
    config: str = ""  # the file of --config=NAME, and the default of --config
    flags: tuple[str, ...] = ()  # added to those of the user
    words: tuple[str, ...] = ()  # put before those of the user
    of_files: str = ""  # the module in place of it for words that do not begin with a flag
    extra: str = ""  # whose packages it needs


# The first ones of an extra that a command imports; without them it would end in a traceback.
EXTRAS = {"scenes": ("rasterio", "xarray", "zarr")}


MAIN = "anysat_jax.main"
SCENES = "anysat_jax.scenes.cli"
COMMANDS = {
    "train": Command("pretrains: --config=mini (default), geoplex, prepared,NAME, FILE.py", MAIN, "pretrain.py"),
    "finetune": Command("fine-tunes: --config=NAME --config.init=WEIGHTS", MAIN, "finetune.py"),
    "probe": Command("fits a linear layer on frozen features: the same flags", MAIN, "probe.py"),
    "evaluate": Command("scores a finished run: --config=NAME --config.init=RUN", MAIN, "evaluate.py"),
    "describe": Command(
        "prints the parameters of a model, or what WEIGHTS hold: --config=NAME, or WEIGHTS",
        MAIN,
        "pretrain.py",
        ("--config.job=describe",),
        of_files="anysat_jax.describe",
    ),
    "data": Command("lists, shows, draws, fakes and prepares datasets", "data_pipelines"),
    "status": Command("prints the progress of runs: RUN ...", "anysat_jax.status"),
    "report": Command("compares finished runs with the paper's tables: RUN ...", "anysat_jax.report"),
    "export": Command("writes weights to one .safetensors file: RUN FILE", "anysat_jax.export"),
    "convert": Command("converts weights: IN OUT, .pth, .safetensors, folder", "anysat_jax.export", flags=("--whole",)),
    "embed": Command(
        "writes the features of a whole scene: --s2 SOURCE ... --output FILE", SCENES, words=("embed",), extra="scenes"
    ),
    "predict": Command(
        "writes a map of a whole scene by a finished fine-tuning", SCENES, words=("predict",), extra="scenes"
    ),
    "view": Command(
        "writes a page to look at results of embed and predict: FILE", SCENES, words=("view",), extra="scenes"
    ),
    "aot": Command("estimates memory and time on TPUs and GPUs", "anysat_jax.launch.aot", "pretrain.py"),
    "local": Command("runs several processes on this machine: -- FLAGS of train", "anysat_jax.launch.local"),
    "tpu": Command("creates, sets up and runs a slice of Cloud TPU", "anysat_jax.launch.tpu"),
    "jobset": Command("prints a JobSet for Kubernetes", "anysat_jax.launch.jobset"),
}


def usage() -> str:
    """Returns the text of --help."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    lines = [f"  {name:9} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join([first, "", "usage: anysat COMMAND ...      anysat COMMAND --help", "", *lines, "", rest.strip()])


def with_config(flags: list[str], file: str) -> list[str]:
    """Returns the flags with --config=NAME as --config=FILE:NAME, and with --config=FILE if they lack --config."""
    flags = list(flags)
    for place, flag in reversed(list(enumerate(flags))):
        if flag in ("--config", "-config"):  # the value is the next word
            flags[place : place + 2] = [f"--config={''.join(flags[place + 1 : place + 2])}"]
    given = [place for place, flag in enumerate(flags) if flag.startswith(("--config=", "-config="))]
    if not given:
        return [f"--config={file}", *flags]
    for place in given:
        spec = flags[place].partition("=")[2]
        if not spec.partition(":")[0].endswith(".py"):
            flags[place] = f"--config={file}:{spec}"
    return flags


def main() -> None:
    """Runs the command of the command line, as `python -m` would run its module."""
    name, flags = "".join(sys.argv[1:2]), sys.argv[2:]
    signal.signal(signal.SIGINT, end_at_once)
    if name == "--version":
        from anysat_jax import __version__

        print(f"anysat-jax {__version__}")
    elif name in ("", "-h", "--help", "help"):
        print(usage())
    elif name not in COMMANDS:
        sys.exit(f"anysat: unknown command {name!r}; commands: {', '.join(COMMANDS)}")
    else:
        command = COMMANDS[name]
        if command.of_files and flags and not flags[0].startswith("-"):
            command = Command(command.help, command.of_files)
        if missing := [package for package in EXTRAS.get(command.extra, ()) if find_spec(package) is None]:
            sys.exit(f"anysat {name} needs {', '.join(missing)}: pip install 'anysat-jax[{command.extra}]'")
        if command.config and not {"-h", "--help", "--helpfull"} & set(flags):
            flags = with_config(flags, command.config)
        sys.argv = [f"anysat {name}", *command.words, *flags, *command.flags]
        # Run as __main__, so that the module's docstring is the help text and spawned workers can import it.
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
