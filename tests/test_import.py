import subprocess
import sys

HEAVY = (
    "tensorflow_datasets",
    "grain",
    "array_record",
    "rasterio",
    "h5py",
    "torch",
    "matplotlib",
    "tensorboardX",
    "sklearn",
)
CHECK = "import sys; {}; print([name for name in {} if name in sys.modules])"


def loaded_by(statement: str) -> str:
    """Which heavy packages a statement imports, in an interpreter of its own."""
    command = [sys.executable, "-c", CHECK.format(statement, HEAVY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_library_is_light():
    assert loaded_by("import anysat_jax; anysat_jax.AnySat.from_config('tiny')") == "[]"


def test_public_names():
    import anysat_jax

    assert set(anysat_jax.__all__) == {"AnySat", "SENSORS", "Sensor", "__version__"}
    assert all(hasattr(anysat_jax, name) for name in anysat_jax.__all__)
    assert not hasattr(anysat_jax, "AnySatt")
