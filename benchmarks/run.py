"""Times the base model's features, steps and contrastive loss, against the machine's own rate of matrix products.

    python benchmarks/run.py                                 # F1 to P3, float32: two CPU cores need 20 minutes
    python benchmarks/run.py F1 P1 --compare HEAD~1          # each case in turn on this tree and on another commit
    python benchmarks/run.py F1 F4 --reference CHECKOUT      # in turn with a checkout of the published code (PyTorch)
    python benchmarks/run.py G F1 F4 D1 --dtype bfloat16 --largest --minutes 9 --trace DIR     # all of a GPU

Each measurement is a process of its own, which also times a product of two large matrices: "of the rate" compares runs
of machines whose speed varies, "MFU" is the fraction of the rate in an accelerator's data sheet. Batches are noise. The
table has the first call (compiling), the median of the others, and the largest memory: of the device where it counts
it, else of the process. Of anysat-jax's dependencies it needs only those of the model and the step, see
docs/PERFORMANCE.md.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
RATE_SIZE = {"cpu": 3072, "gpu": 8192, "tpu": 8192}  # side of the matrices whose product measures the rate


class Case(NamedTuple):
    """A batch: its sensors, sides of tile and patch in metres, tiles, and dates of each series."""

    sensors: tuple[str, ...]
    extent: float
    patch_size: float
    batch: int
    dates: int


# F: features of all patches. P, G: a step of pretraining. C: the contrastive loss and its gradient. D: losses of many
# steps and features in bfloat16, beside those in float32.
CASES = {
    "F1": Case(("aerial", "s2", "s1-asc"), 60, 10, 4, 30),
    "F2": Case(("aerial", "s2", "s1-asc"), 60, 20, 4, 30),
    "F3": Case(("spot", "s2", "s1"), 640, 80, 1, 20),
    "F4": Case(("s2",), 640, 40, 1, 20),
    "F5": Case(("s2",), 10, 10, 64, 30),
    "F6": Case(("naip", "l8", "s2", "s1"), 640, 80, 1, 8),
    "P1": Case(("aerial", "s2", "s1-asc"), 60, 10, 4, 30),
    "P2": Case(("s2", "s1", "l7", "alos", "modis"), 120, 30, 8, 12),
    "P3": Case(("spot", "s2", "s1"), 320, 40, 1, 20),
    "G1": Case(("aerial", "s2", "s1-asc"), 60, 10, 128, 70),  # TreeSatAI-TS
    "G2": Case(("spot", "s2", "s1"), 1280, 80, 1, 20),  # PASTIS-HD, and twice as much
    "G3": Case(("spot", "s2", "s1"), 1280, 80, 2, 20),
    "G4": Case(("aerial-flair", "s2"), 100, 10, 32, 35),  # FLAIR
    "G5": Case(("s2", "s1", "l7", "alos", "modis"), 120, 30, 256, 60),  # PLANTED
    "G6": Case(("naip", "s2", "s1", "l8"), 640, 80, 2, 32),  # S2NAIP
    "C1": Case(("s2", "s1", "l7", "alos"), 120, 30, 1024, 1),  # the 65,536 tokens of a batch of PLANTED; twice as many
    "C2": Case(("s2", "s1", "l7", "alos"), 120, 30, 2048, 1),
    "D1": Case(("s2", "s1", "l7", "alos", "modis"), 120, 30, 8, 12),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}, or a letter; default: those of F and P")
    parser.add_argument("--repeat", type=int, default=3, help="timed calls of each process, after the first")
    parser.add_argument("--preset", default="base", help="model: tiny, small or base")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of the computation")
    parser.add_argument("--remat", default="dots", choices=("none", "dots", "full"), help="of pretraining's steps")
    parser.add_argument(
        "--trace", type=pathlib.Path, metavar="DIR", help="write a profile of one more call of each case; a summary too"
    )
    parser.add_argument("--largest", action="store_true", help="then double each batch until it does not fit")
    parser.add_argument("--minutes", type=float, default=600, help="begin nothing more, and end what runs, after these")
    parser.add_argument("--steps", type=int, default=3000, help="of D")
    parser.add_argument("--scale", type=float, default=1, help="multiplies the batches, as by 0.01 to try the command")
    parser.add_argument("--compare", metavar="COMMIT", help="commit to time in turn with this tree")
    parser.add_argument(
        "--reference", type=pathlib.Path, metavar="CHECKOUT", help="the published code, with hubconf.py"
    )
    parser.add_argument("--worker", choices=("ours", "larger", "published"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.given = arguments.cases or ["F", "P"]
    arguments.until = time.monotonic() + 60 * arguments.minutes
    arguments.cases = [
        name for one in arguments.given for name in ([each for each in CASES if each[0] == one] or [one])
    ]
    if unknown := sorted(set(arguments.cases) - set(CASES)):
        parser.error(f"unknown cases {', '.join(unknown)}; there are {', '.join(CASES)}")
    return arguments


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measures one case with the package on the path; FLOPs are those of the step's or the encoder's products."""
    import jax

    from anysat_jax.peak import peak_flops

    device = jax.devices()[0]
    case = scaled(name, arguments.scale)
    call, flops = {"F": features, "C": contrastive}.get(name[0], pretraining)(case, arguments)
    seconds = [seconds_of(lambda: jax.block_until_ready(call())) for _ in range(1 + arguments.repeat)]
    if arguments.trace is not None and arguments.worker != "larger":
        trace(call, arguments.trace / name)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use") or process_peak()
    # Last: its matrices would be part of the peak.
    rate = product_rate(RATE_SIZE[device.platform], arguments.dtype)
    return result(seconds, rate, flops, peak) | {"sheet": peak_flops(device.device_kind) or 0.0}


def product_rate(side: int, dtype: str) -> float:
    """Returns the FLOP/s of a product of two large matrices, which are then freed."""
    import jax

    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2 * side**3 / min([seconds_of(lambda: jax.block_until_ready(product(matrix))) for _ in range(6)][1:])


def scaled(name: str, scale: float) -> Case:
    """Returns a case with more tiles, or fewer, at least one."""
    return CASES[name]._replace(batch=max(1, round(CASES[name].batch * scale)))


def trace(call: Callable[[], Any], folder: pathlib.Path) -> None:
    """Writes a profile of one call, and prints its summary."""
    import jax

    from anysat_jax.train import profiling

    with jax.profiler.trace(folder), jax.profiler.StepTraceAnnotation(profiling.STEP, step_num=0):
        jax.block_until_ready(call())
    path = max(folder.glob("plugins/profile/*/*.xplane.pb"))
    print(f"{folder.name}: {profiling.describe(profiling.read_trace(path))}", file=sys.stderr)


def process_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def result(seconds: list[float], rate: float, flops: float, peak: int) -> dict[str, float]:
    return {"first": seconds[0], "seconds": statistics.median(seconds[1:]), "peak": peak, "rate": rate, "flops": flops}


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def features(case: Case, arguments: argparse.Namespace) -> tuple[Callable[[], Any], float]:
    """Returns a call that computes the vectors of all patches, and its FLOPs."""
    import jax

    from anysat_jax.api import AnySat
    from anysat_jax.flops import encoder_flops
    from anysat_jax.model.encoder import encode

    model = AnySat.from_config(arguments.preset, sensors=case.sensors, dtype=arguments.dtype)
    given = model.params, jax.device_put(batch_of(case))
    run = jax.jit(lambda params, batch: encode(model.config, params, batch, "all"))
    return lambda: run(*given), sum(encoder_flops(model.config, given[1]).values())


def pretraining(case: Case, arguments: argparse.Namespace, batches: int = 1) -> tuple[Callable[[], Any], float]:
    """Returns a call that makes one step of pretraining, in two programs as the loop does, and its FLOPs.

    The steps take `batches` in turn.
    """
    import jax
    import numpy as np

    from anysat_jax.configs import pretrain
    from anysat_jax.flops import step_flops
    from anysat_jax.model.init import init_student
    from anysat_jax.pretrain.config import PretrainConfig
    from anysat_jax.pretrain.masking import sample_patch_masks
    from anysat_jax.pretrain.step import initial_state, make_train_step, pretraining_optimizer
    from anysat_jax.train.compile import Compiled

    section = pretrain.common()
    section.total_steps, section.dtype, section.optimizer.schedule = 1000, arguments.dtype, "cosine"
    section.model.update(preset=arguments.preset, sensors=case.sensors, remat=arguments.remat)
    if batches > 1:
        section.pretrain.mask_buckets = 1, 1  # one size of masks, so that one program takes all of them
    config = PretrainConfig.read(section)
    optimizer = pretraining_optimizer(config)
    step, rng, inputs = make_train_step(config, optimizer), np.random.default_rng(0), []
    for seed in range(batches):
        batch = batch_of(case, seed)
        masks = sample_patch_masks(rng, batch.grid, case.batch, config.pretrain)
        inputs.append(jax.device_put((batch, masks)))
    turns = itertools.cycle(inputs)
    # Compiled as by the loop, which gives the compiler's memory back.
    gradients, update = Compiled(jax.jit(step.gradients)), Compiled(jax.jit(step.update, donate_argnums=0))
    state = [initial_state(jax.device_put(init_student(config.model, 0)), optimizer)]

    def call() -> Any:
        metrics, grads = gradients(state[0], *next(turns))
        state[0], more = update(state[0], {name: metrics[name] for name in step.losses}, grads)
        return metrics | more

    return call, step_flops(config.model, batch, masks)


def drift(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measures the losses of the tiny model's steps in both dtypes in turn, and its first features in both.

    Fewer steps than `--steps` are made where `--minutes` end before.
    """
    import numpy as np

    case, steps, vectors, losses = scaled(name, arguments.scale), [], [], []
    arguments.preset = "tiny"
    for arguments.dtype in ("float32", "bfloat16"):
        vectors.append(np.asarray(features(case, arguments)[0](), np.float32))
        steps.append(pretraining(case, arguments, batches=16)[0])
    while not losses or (len(losses) < arguments.steps and time.monotonic() < arguments.until):
        losses.append([float(step()["loss"]) for step in steps])
    last = np.mean(losses[-max(1, len(losses) // 10) :], axis=0).tolist()
    cosines = (vectors[0] * vectors[1]).sum(-1) / np.prod([np.linalg.norm(one, axis=-1) for one in vectors], axis=0)
    return {"float32": last[0], "bfloat16": last[1], "steps": len(losses), "cosine": float(cosines.min())}


def contrastive(case: Case, arguments: argparse.Namespace) -> tuple[Callable[[], Any], float]:
    """Returns a call that computes the contrastive loss of a batch's patches and its gradient, and its FLOPs."""
    import jax

    from anysat_jax.flops import product_flops
    from anysat_jax.model.config import PRESETS
    from anysat_jax.pretrain.contrastive import contrastive_loss

    width = PRESETS[arguments.preset]["dim"]
    shape = (case.batch, len(case.sensors), round(case.extent / case.patch_size) ** 2, width)
    tokens = jax.random.normal(jax.random.key(0), shape, arguments.dtype)
    count = tokens.size // width
    run = jax.jit(jax.value_and_grad(lambda tokens: contrastive_loss(tokens, block_size=1024)))
    return lambda: run(tokens), 3 * product_flops(count, width, count)


def batch_of(case: Case, seed: int = 0) -> Any:
    from anysat_jax.batch import fake_batch

    sides = {"extent": case.extent, "patch_size": case.patch_size}
    return fake_batch(case.sensors, batch_size=case.batch, num_dates=case.dates, seed=seed, **sides)


def reference(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measures the features of a case by the published code, through its documented call."""
    import torch

    case, data = CASES[name], {}
    model = torch.hub.load(
        str(arguments.reference), "anysat", source="local", pretrained=False, flash_attn=False
    ).eval()
    for sensor, observation in batch_of(case).observations.items():
        data[sensor] = torch.from_numpy(observation.values)
        if observation.dates is not None:
            data[f"{sensor}_dates"] = torch.from_numpy(observation.dates)
    with torch.inference_mode():
        call = lambda: model(data, patch_size=case.patch_size, output="patch")  # noqa: E731
        seconds, peak = [seconds_of(call) for _ in range(1 + arguments.repeat)], process_peak()
        matrix = torch.randn(RATE_SIZE["cpu"], RATE_SIZE["cpu"])
        rate = 2 * len(matrix) ** 3 / min([seconds_of(lambda: matrix @ matrix) for _ in range(6)][1:])
    return result(seconds, rate, 0.0, peak)


def in_process(
    name: str, arguments: argparse.Namespace, tree: pathlib.Path = REPOSITORY, worker: str = "ours", scale: float = 1
) -> dict[str, float] | None:
    """Measures a case in a process that imports the package from `tree`; None if that fails, as without memory."""
    options = [option for option in sys.argv[1:] if option not in arguments.given]
    left = arguments.until - time.monotonic()
    # A worker that makes as many steps as it can (D) ends before it is ended.
    own = [f"--scale={scale}", f"--minutes={max(left - 10, 0) / 60:.3f}"]
    command = [sys.executable, __file__, name, *options, "--worker", worker, *own]
    # JAX takes three quarters of a GPU's memory unless it is given more.
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95", **os.environ, "PYTHONPATH": str(tree)}
    try:
        ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=max(left, 0.1))
    except subprocess.TimeoutExpired:
        print(f"{name}: more than {arguments.minutes:g} minutes in all", file=sys.stderr)
        return None
    return None if ran.returncode else json.loads(ran.stdout.splitlines()[-1])


COLUMNS = "case, side, tiles, first call s, s, tiles/s, km2/s, TFLOP/s, of the rate, MFU, peak GB, time, memory"


def print_row(name: str, side: str, scale: float, row: dict[str, float], own: dict[str, float]) -> None:
    """Prints a measurement; its last columns are the ratios of its time and memory to those of `own`."""
    tiles = scaled(name, scale).batch
    speed, flops = tiles / row["seconds"], own["flops"] / row["seconds"]
    figures = [name, side, tiles, f"{row['first']:.1f}", f"{row['seconds']:.3f}", f"{speed:.3g}"]
    figures += [f"{speed * CASES[name].extent ** 2 / 1e6:.3g}", f"{flops / 1e12:.3g}", f"{flops / row['rate']:.0%}"]
    figures += [f"{flops / row['sheet']:.1%}" if row.get("sheet") else "-", f"{row['peak'] / 1e9:.2f}"]
    figures += [f"{row['seconds'] / own['seconds']:.2f}", f"{row['peak'] / own['peak']:.2f}"]
    print(f"| {' | '.join(map(str, figures))} |", flush=True)


def print_drift(name: str, row: dict[str, float]) -> None:
    one, other = row["float32"], row["bfloat16"]
    print(
        f"{name}, tiny model: loss at the end of {row['steps']} steps {one:.5f} in float32, {other:.5f} in bfloat16 "
        f"({other / one - 1:+.2%}); least cosine of features {row['cosine']:.6f}",
        flush=True,
    )


def print_rows(arguments: argparse.Namespace, sides: dict[str, tuple[pathlib.Path, str]]) -> None:
    """Prints a row for each side of each case, and with --largest for each larger batch that fits."""
    titles = COLUMNS.split(", ")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    fit, left_out = {}, {}
    for name in sorted(arguments.cases, key=lambda name: name[0] == "D"):  # which have no row of the table
        for side, (tree, worker) in sides.items():
            if worker == "published" and not name.startswith("F"):
                continue
            row = in_process(name, arguments, tree, worker, arguments.scale)
            if row is None and time.monotonic() >= arguments.until:
                left_out[name] = True
            elif row is None:
                print(f"| {name} | {side} | failed, see above |", flush=True)
            elif name[0] == "D":
                print_drift(name, row)
            else:
                print_row(name, side, arguments.scale, row, fit.setdefault(name, row))
    if left_out:
        rest = " ".join([*left_out, *(option for option in sys.argv[1:] if option not in arguments.given)])
        print(f"not measured, for lack of time: python benchmarks/run.py {rest}", flush=True)
    scale = 2 * arguments.scale
    while arguments.largest and fit:  # the cases in turn: time may be short
        for name in list(fit):
            if row := in_process(name, arguments, worker="larger", scale=scale):
                print_row(name, "this tree", scale, row, row)
            else:
                del fit[name]
        scale *= 2


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        run = reference if arguments.worker == "published" else drift if arguments.cases[0][0] == "D" else measure
        print(json.dumps(run(arguments.cases[0], arguments)))
        return
    sides = {"this tree": (REPOSITORY, "ours")}
    with contextlib.ExitStack() as folders:
        if arguments.compare:
            folder = folders.enter_context(tempfile.TemporaryDirectory())
            archive = subprocess.run(["git", "archive", arguments.compare], cwd=REPOSITORY, check=True, stdout=-1)
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            sides[arguments.compare] = (pathlib.Path(folder), "ours")
        if arguments.reference:
            sides["published code"] = (REPOSITORY, "published")
        print_rows(arguments, sides)


if __name__ == "__main__":
    main()
