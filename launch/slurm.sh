#!/usr/bin/env bash
# Trains on several nodes of a SLURM cluster: one process a node, with all of the node's GPUs.
# usage: sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --config=configs/pretrain.py:geoplex --workdir=DIR
#
# DIR is on a disk that all nodes share. Submit from the checkout. $ANYSAT_PYTHON: a Python in place of .venv's.
# Options of sbatch override the lines below.
#SBATCH --job-name=anysat
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if [ "${1:-}" = --help ]; then
  awk 'NR > 1 && !/^#( |$)/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0" # the first lines above
  exit 0
fi
: "${SLURM_JOB_ID:?slurm.sh: not a SLURM job: give this file to sbatch, see --help}"

retries=3 restarts=${ANYSAT_RESTARTS:-100} # after failures; after exit code 75
python=${ANYSAT_PYTHON:-.venv/bin/python}
[ -x "$(command -v "$python")" ] || { echo "slurm.sh: no Python at $python: set ANYSAT_PYTHON" >&2; exit 2; }

# Under SLURM, JAX gives a process one GPU unless this variable lists them.
if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi

# A preempted or cancelled job gets SIGTERM in this shell, too. The processes save; this shell waits for them.
trap : TERM

# Near the time limit the job still runs, and queues itself again. A cancelled or preempted job is completing already,
# and SLURM requeues it or not by its own rules.
requeue() {
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$restarts" ]; then
    echo "slurm.sh: exit code 75 after $restarts restarts: does it hang? Submit it again to continue" >&2
  elif [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    echo "slurm.sh: exit code 75: queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit 75
}

for attempt in $(seq 0 "$retries"); do
  code=0
  # The other processes finish their part of the last save: they are killed 300 s after the first that ends.
  srun --kill-on-bad-exit=0 --wait=300 --cpus-per-task="${SLURM_CPUS_ON_NODE:?}" "$python" -m anysat_jax.main --processes=auto "$@" || code=$?
  [ "$code" -ne 0 ] || exit 0
  [ "$code" -ne 75 ] || requeue
  echo "slurm.sh: exit code $code at start $attempt of $retries" >&2
done
exit "$code"
