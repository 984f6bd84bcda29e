"""Time and peak memory of the contrastive loss, forward and backward, at the token counts of the paper's batches.

    python benchmarks/contrastive.py                       # 65,536 tokens of width 768: PLANTED at batch 1024
    python benchmarks/contrastive.py --tokens 65536 131072 # and at batch 2048

Each count runs in a process of its own, so that peaks do not mix. Minutes on a CPU; docs/PERFORMANCE.md quotes it.
"""

import argparse
import concurrent.futures
import multiprocessing
import sys
import time

SENSORS, PATCHES = 4, 16  # PLANTED: Sentinel-2, Sentinel-1, ALOS-2, Landsat 7; 120 m tiles in patches of 30 m


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[65_536], help=f"multiples of {SENSORS * PATCHES}")
    parser.add_argument("--width", type=int, default=768, help="width of a token")
    parser.add_argument("--block", type=int, default=1024, help="rows of the similarity matrix held at a time")
    parser.add_argument("--limit-gb", type=float, default=None, help="fail if a peak is above this many GB")
    arguments = parser.parse_args()
    for count in arguments.tokens:
        if count < 1 or count % (SENSORS * PATCHES):
            parser.error(f"--tokens {count}: give positive multiples of {SENSORS * PATCHES}")
    return arguments


def measure(count: int, width: int, block: int) -> dict[str, float]:
    """Measures a forward and backward pass over `count` tokens."""
    import jax

    from anysat_jax.pretrain.contrastive import contrastive_loss
    from anysat_jax.train.record import peak_memory_mb

    shape = (count // (SENSORS * PATCHES), SENSORS, PATCHES, width)
    step = jax.jit(jax.value_and_grad(lambda tokens: contrastive_loss(tokens, block_size=block)))
    # Compiled without tokens, so that the compiler's memory is in the figure before they are made.
    compiled = step.lower(jax.ShapeDtypeStruct(shape, "float32")).compile()
    before = peak_memory_mb()
    tokens = jax.random.normal(jax.random.key(0), shape).block_until_ready()
    start = time.perf_counter()
    loss, grad = jax.block_until_ready(compiled(tokens))
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "before": before * 2**20 / 1e9,
        "peak": peak_memory_mb() * 2**20 / 1e9,
        "loss": float(loss),
        "finite": bool(jax.numpy.isfinite(grad).all()),
        "device": str(jax.devices()[0].device_kind),
    }


def main() -> None:
    arguments, too_large = parse_arguments(), False
    for count in arguments.tokens:
        # The peak of a process never falls: each count has its own, which inherits nothing.
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            result = pool.submit(measure, count, arguments.width, arguments.block).result()
        print(
            f"{count:,} tokens of width {arguments.width} on {result['device']}, blocks of {arguments.block} rows: "
            f"forward and backward {result['seconds']:.1f} s; peak memory of the process {result['peak']:.2f} GB "
            f"({result['before']:.2f} GB before the tokens were made); "
            f"the full matrix would be {count**2 * 4 / 1e9:.1f} GB; "
            f"loss {result['loss']:.4f}, gradients {'finite' if result['finite'] else 'NOT FINITE'}",
            flush=True,
        )
        too_large |= arguments.limit_gb is not None and result["peak"] > arguments.limit_gb
    if too_large:
        sys.exit(f"a peak is above --limit-gb {arguments.limit_gb}")


if __name__ == "__main__":
    main()
