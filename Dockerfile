# Image of the package, for Kubernetes and for one host.
#   docker build --build-arg EXTRAS=tpu -t anysat-jax:tpu .
#   docker build --build-arg EXTRAS=cuda -t anysat-jax:cuda .
#   docker run --rm --gpus all -v "$PWD/runs:/runs" anysat-jax:cuda --config=configs/pretrain.py --workdir=/runs/mini
# EXTRAS are those of setup.py: with "cuda,data" the image can also prepare datasets. The wheels of jax contain CUDA or
# libtpu; the host provides the driver and, for GPUs, the NVIDIA container toolkit.
FROM python:3.12-slim-bookworm

ARG EXTRAS=cuda

# rasterio's wheels (extra "data") need the system's libexpat. Not pinned: Debian stable only updates it with fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/*

# What the NVIDIA container toolkit exposes to the container; ignored without GPUs.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1

WORKDIR /anysat-jax
COPY . .
# gcsfs reads prepared data from gs:// buckets. Not pinned: its release must match that of fsspec, which pip ensures.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -e ".[${EXTRAS}]" gcsfs

# Exec form, so that Python is process 1: it receives SIGTERM, and its exit code (75: start again) is the container's.
ENTRYPOINT ["python", "-m", "anysat_jax.main"]
CMD ["--help"]
