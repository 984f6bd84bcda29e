"""Times features of the base model against dates, patches, sub-patches and tiles, and draws docs/scaling.png.

    python benchmarks/scaling.py --out docs/scaling.png     # three minutes on two CPU cores

Each curve changes one number and keeps the others. Its exponent is the slope of the last two points in logarithms: 1
where the time grows as the number does, 2 where it grows with its square.
"""

import argparse
import math
import pathlib
import sys

# A script has its own folder on the path, not the repository.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax

from benchmarks import run

CURVES = {  # the numbers of each, with their cases
    "dates": {dates: run.Case(("s2",), 160, 40, 1, dates) for dates in (5, 10, 20, 40, 80, 160)},
    "patches of 40 m": {side**2: run.Case(("s2",), 40 * side, 40, 1, 20) for side in (2, 4, 8, 16)},
    "sub-patches in a patch": {side**2: run.Case(("s2",), 320, 10 * side, 1, 20) for side in (1, 2, 4, 8, 16)},
    "tiles": {tiles: run.Case(("s2",), 80, 40, tiles, 20) for tiles in (1, 2, 4, 8, 16)},
}


def measure(case: run.Case, options: argparse.Namespace) -> tuple[float, float]:
    """Returns the least seconds of a call, and its FLOPs."""
    call, flops = run.features(case, options)
    return min([run.seconds_of(lambda: jax.block_until_ready(call())) for _ in range(1 + options.repeat)][1:]), flops


def exponent(points: dict[int, float]) -> float:
    """Returns the slope of the last two points in logarithms."""
    (before, first), (after, last) = list(points.items())[-2:]
    return math.log(last / first) / math.log(after / before)


def draw(found: dict[str, dict[int, tuple[float, float]]], path: pathlib.Path) -> None:
    """Draws the times, and beside them those of the FLOPs at the highest rate of the curve."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3), layout="constrained", sharey=True)
    for ax, (name, points) in zip(axes, found.items(), strict=True):
        rate = max(flops / seconds for seconds, flops in points.values())
        ax.loglog(
            list(points), [flops / rate for _, flops in points.values()], color="0.6", linestyle="--", label="FLOPs"
        )
        ax.loglog(list(points), [seconds for seconds, _ in points.values()], marker="o", label="measured")
        ax.set(xlabel=name, title=f"exponent {exponent({at: one for at, (one, _) in points.items()}):.2f}")
    axes[0].set_ylabel("seconds")
    axes[0].legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default="scaling.png")
    parser.add_argument("--repeat", type=int, default=3, help="timed calls of each point, after the first")
    parser.add_argument("--preset", default="base", help="model: tiny, small or base")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    found = {}
    for name, cases in CURVES.items():
        found[name] = {}
        for number, case in cases.items():
            found[name][number] = seconds, flops = measure(case, options)
            print(f"{name} {number}: {seconds:.3f} s, {flops / 1e9:.3g} GFLOP", file=sys.stderr)
        times, work = ({at: one[part] for at, one in found[name].items()} for part in (0, 1))
        print(f"{name}: exponent {exponent(times):.2f} of the time, {exponent(work):.2f} of the FLOPs", flush=True)
    draw(found, options.out)
    print(f"the curves are in {options.out}")


if __name__ == "__main__":
    main()
