# The package in an image, for Kubernetes and for one host.
#   docker build --build-arg EXTRAS=tpu -t anysat-jax:tpu .
#   docker build --build-arg EXTRAS=cuda -t anysat-jax:cuda .
#   docker run --rm --gpus all -v "$PWD/runs:/runs" anysat-jax:cuda --config=configs/pretrain.py --workdir=/runs/mini
# EXTRAS are those of setup.py: "cuda,data" can prepare datasets, too. The wheels of jax bring CUDA and libtpu along; the
# host brings the driver and, for GPUs, the NVIDIA container toolkit.
FROM python:3.12-slim-bookworm

ARG EXTRAS=cuda

# rasterio's wheels (of the extra data) look for the system's libexpat. Debian's stable releases only mend it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/*

# What the container toolkit is to hand in; without GPUs nobody reads it.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1

WORKDIR /anysat-jax
COPY . .
# gcsfs: prepared data in buckets, gs://. It must be of the release of fsspec, which pip sees to.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -e ".[${EXTRAS}]" gcsfs

# The process is the container's first: SIGTERM reaches it, and its exit code (75: start again) is the container's.
ENTRYPOINT ["python", "-m", "anysat_jax.main"]
CMD ["--help"]
