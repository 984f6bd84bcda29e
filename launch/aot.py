"""Memory and step time of every program of a config on TPUs and GPUs that are not attached.

  python -m launch.aot --config=configs/pretrain.py:geoplex --topology=v5e:16x16

For each (dataset, patch size): the memory of a chip, the FLOPs of a tile, the messages between chips, and a lower bound
of the step time at the chips' published rates. For TPUs (v5e, v5p, v6e) the step is compiled, which needs libtpu and
minutes for each program, but no TPU (pip install -e '.[tpu]'). GPUs (a100:8, h100:64, h200:8) are estimated
analytically, their memory from a compiled TPU program of the same config if there is one in --results.

--search also finds the largest batch that fits, by compiling others. Batch sizes that the mesh does not divide are
rounded, and the flags for training are printed; with --noround they are an error, as in training. Every value can be
overridden, such as --config.mesh.tensor=2. Measurements are kept below --results, and not made again.

Exit codes: 0 everything fits; 1 an error, reported in one sentence; 3 at least one batch does not fit.
"""

import functools
import os
import pathlib
import subprocess
import sys

from absl import app, flags
from ml_collections import ConfigDict

from anysat_jax import main as command_line
from anysat_jax.errors import ConfigError, RunError, complain
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.train.sharding import batch_size_flags, even_batch_size

from .aot_compile import Case, Compiler, Results, all_cases, batch_unit
from .chips import Topology, parse_topology
from .roofline import Row, as_json, as_markdown, as_text, compiled_row, paper_row

PROGRAM = "launch.aot"
EXIT_TOO_LARGE = 3
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # libtpu's lock protects attached TPUs, of which there are none.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Outside of Google's cloud a query of its metadata server would wait for a timeout.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
"""Environment of the process that compiles; libtpu reads it when it is loaded."""

_TOPOLOGY = flags.DEFINE_list("topology", None, "Slices: v5e:16x16, v5p:8x8x16, v6e:8x8, h100:8; several with commas.")
_ONLY = flags.DEFINE_string("only", "", "Datasets or single cases: pastis_hd,flair-20. Default: all.")
_BATCHES_FOR = flags.DEFINE_integer(
    "batches_for",
    None,
    "Number of chips that the config's batch sizes are meant for; batches grow in proportion to the slice.",
    lower_bound=1,
)
_PAPER = flags.DEFINE_bool("paper", False, "Estimate TPUs analytically too.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the largest batch that fits.")
_QUICK = flags.DEFINE_bool(
    "quick", False, "Let XLA optimise little: compiles four times faster, overestimates memory traffic."
)
_ROUND = flags.DEFINE_bool("round", True, "Round batch sizes that the mesh does not divide; --noround refuses them.")
_RESULTS = flags.DEFINE_string("results", "runs/aot", "Folder of the measurements.")
_MARKDOWN = flags.DEFINE_string(
    "markdown", None, "Also write the table to this file, between the lines <!-- table NAME --> and <!-- end -->."
)
_TABLE = flags.DEFINE_string("table", "", "NAME of the table in --markdown. Default: the slices.")
_JSON = flags.DEFINE_string("json", None, "Also write the table to this file, as JSON.")
_CHILD = flags.DEFINE_bool("in_child", False, "Compile in this process; used by the command itself.")


def cases_of(config: ConfigDict, topology: Topology) -> list[Case]:
    """Returns the cases of --only, with batch sizes that the mesh divides; prints which ones it has changed.

    Raises:
      ConfigError: the mesh does not match the slice; a batch size is not divisible, and --noround was given.
    """
    cases, unit = all_cases(config, _ONLY.value), batch_unit(config, topology)
    if chips := _BATCHES_FOR.value:
        cases = [case.with_batch(-(-case.batch_size * topology.chips // chips)) for case in cases]
    if uneven := {case.dataset: case.batch_size for case in cases if case.batch_size % unit}:
        sizes = ", ".join(f"{dataset} {size}" for dataset, size in uneven.items())
        remark = f"batches ({sizes}) cannot be cut into {unit} equal parts"
        remedy = batch_size_flags(uneven, unit)
        if not _ROUND.value:
            raise ConfigError(f"{remark}; give {remedy}, or share out each tile with --config.mesh.tensor")
        if not _CHILD.value:
            complain(f"{remark}; taken here, and needed to train on {topology.name}: {remedy}", PROGRAM)
    return [case.with_batch(even_batch_size(case.batch_size, unit)) for case in cases]


def rows_of(results: Results, topology: Topology) -> list[Row]:
    """Returns the table of one slice.

    Raises:
      ConfigError: config and slice do not match.
      RunError: libtpu ended the child process that compiles.
      SystemExit: the child process failed and has printed the reason.
    """
    cases = cases_of(results.config, topology)
    if topology.chip.kind == "gpu" or _PAPER.value:
        return [paper_row(results, case, topology) for case in cases]
    # In a process of its own: libtpu may end it, and reads ENVIRONMENT only once, when it is loaded.
    command = [sys.executable, "-m", "anysat_jax.launch.aot", *sys.argv[1:], f"--topology={topology.name}"]
    code = subprocess.run([*command, "--in_child"], env={**ENVIRONMENT, **os.environ}, check=False).returncode
    if code == command_line.EXIT_ERROR:
        sys.exit(code)
    if code:
        raise RunError(f"the process that compiles for {topology.name} ended with code {code}; start again to continue")
    return [compiled_row(results, case, topology) for case in cases]


def check_outputs() -> None:
    """Checks that the outputs can be written, before minutes of compiling.

    Raises:
      ConfigError: names the flag and the path.
    """
    kinds = ((_RESULTS, "a folder"), (_JSON, "a file in an existing folder"), (_MARKDOWN, "an existing page"))
    for flag, what in kinds:
        if not flag.value:
            continue
        path = pathlib.Path(flag.value)
        if flag is _RESULTS:
            # Created with its parents if missing: the nearest folder that exists decides.
            path = next(one for one in (path, *path.absolute().parents) if one.exists())
        new = flag is _JSON and path.parent.is_dir() and not path.exists()
        if not (path.is_dir() if flag is _RESULTS else path.is_file() or new):
            raise ConfigError(f"--{flag.name}={flag.value} must be {what}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"--{flag.name}={flag.value} cannot be written: permission denied")


def put_table(file: pathlib.Path, name: str, table: str) -> None:
    """Replaces a table in a page, between its two comment lines.

    Raises:
      ConfigError: the page does not have these lines.
    """
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(f"<!-- table {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not begin or not end:
        raise ConfigError(f"{file} has no lines <!-- table {name} --> and <!-- end -->; add them where it belongs")
    file.write_text(f"{before}{begin}{table}\n{end}{after}", encoding="utf-8")


def run(config: ConfigDict) -> int:
    """Runs the command and returns the exit code."""
    PretrainConfig.read(config)
    if not _TOPOLOGY.value:
        raise ConfigError("give --topology=v5e:16x16, or several with commas (see --help)")
    topologies = [parse_topology(name) for name in _TOPOLOGY.value]
    check_outputs()
    results = Results(config, pathlib.Path(_RESULTS.value), quick=_QUICK.value)
    if _CHILD.value:
        compiler = Compiler(topologies[0], results)
        for case in cases_of(config, topologies[0]):
            measured = compiler.measure(case)
            if _SEARCH.value:
                compiler.largest(case, measured)
        return 0
    rows = [row for topology in topologies for row in rows_of(results, topology)]
    print(as_text(rows))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(as_json(rows))
    if _MARKDOWN.value:
        put_table(pathlib.Path(_MARKDOWN.value), _TABLE.value or ",".join(_TOPOLOGY.value), as_markdown(rows))
    return 0 if all(row.fits is not False for row in rows) else EXIT_TOO_LARGE


def main(argv: list[str]) -> int:
    """Runs the command and reports errors in one sentence. Returns the exit code."""
    del argv
    command_line.quiet_logs()
    try:
        if flags.FLAGS.config is None:
            raise ConfigError("give a config: --config=configs/pretrain.py:geoplex (see --help)")
        return run(flags.FLAGS.config)
    except (RunError, OSError) as error:
        return complain(error, PROGRAM)


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(command_line.parse_or_exit, program=PROGRAM))
