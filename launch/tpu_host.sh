#!/usr/bin/env bash
# Prepares one host of a Cloud TPU slice: Python, the package with libtpu, and a bucket where runs go.
# usage: bash launch/tpu_host.sh [BUCKET]      python -m launch.tpu setup runs it on every host, and may again
set -euo pipefail
cd "$(dirname "$0")/.."

bucket=${1:-}
mount_point=${ANYSAT_MOUNT:-/mnt/anysat}

install_package() {
  # The images come with Python 3.10, which is too old; uv fetches a newer one without root.
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
  python3 -m uv pip install --quiet --python .venv -e '.[tpu]' gcsfs
}

install_gcsfuse() {
  command -v gcsfuse >/dev/null && return
  local key=/usr/share/keyrings/cloud.google.asc apt=https://packages.cloud.google.com/apt
  curl -fsSL "$apt/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -c -s) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo DEBIAN_FRONTEND=noninteractive apt-get -qq install -y gcsfuse
}

mount_bucket() {
  ! mountpoint -q "$mount_point" || return 0
  sudo mkdir -p "$mount_point"
  sudo chown "$(id -u):$(id -g)" "$mount_point"
  # A checkpoint becomes whole by renaming its folder, which gcsfuse refuses for more files than this in a bucket
  # without hierarchical namespace; and what another host has just written must be seen at once.
  gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    "$bucket" "$mount_point"
}

install_package
if [ -n "$bucket" ]; then
  install_gcsfuse
  mount_bucket
fi
echo "ready: $(.venv/bin/python --version), jax $(.venv/bin/python -c 'import jax; print(jax.__version__)')"
