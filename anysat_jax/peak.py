"""Peak rates of devices. Imports no JAX, so that the launchers of TPU slices start without it."""

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5p": 459e12,
    "TPU v5": 459e12,  # v5p, as some versions of the runtime call it
    "TPU v6 lite": 918e12,  # v6e
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
}
"""FLOP/s of one device in bfloat16 products of dense matrices, by how the device's kind begins or what is in it."""


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of a device in bfloat16; None where it is not known, as for CPUs.

    Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e); NVIDIA's data sheets of A100, H100 and H200, without
    sparsity.

    Args:
      device_kind: as JAX names it, such as "TPU v5 lite" or "NVIDIA H100 80GB HBM3".
    """
    found = [name for name in PEAK_FLOPS if name in device_kind]
    return PEAK_FLOPS[max(found, key=len)] if found else None
