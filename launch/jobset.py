"""JobSet manifests for training on Kubernetes: on TPUs of GKE, or on nodes with NVIDIA GPUs of any cluster.

  python -m launch.jobset NAME --image=IMAGE --bucket=BUCKET --topology=v5e:16x16 -- --config=... --workdir=/runs/NAME
  python -m launch.jobset NAME --image=IMAGE --claim=CLAIM --nodes=4 --gpus=8 -- --config=... --workdir=/runs/NAME

`... | kubectl apply -f -` starts it; JSON is valid YAML. /runs is the bucket (by the Cloud Storage FUSE driver of GKE),
or the persistent volume claim. Arguments after `--` are passed to anysat_jax.main. See docs/LAUNCH.md.
"""

import argparse
import json
import re
import sys
from typing import Any

from anysat_jax.errors import ConfigError, complain

from .chips import parse_topology
from .tpu import bucket, split

Manifest = dict[str, Any]

CONTAINER = "anysat"
HOSTS = "host"  # the name of the JobSet's one Job
RUNS = "/runs"  # where the pods see the volume that they share
EXIT_STOPPED = 75  # of anysat_jax.main: stopped by SIGTERM, with a checkpoint
RETRIES = 3  # after any other failure

FAILURE_POLICY = {
    "maxRestarts": RETRIES,
    # No process of one start lives when the next begins: both would write the same workdir.
    "restartStrategy": "BlockingRecreate",
    "rules": [
        {
            "name": "savedAndStopped",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],  # the Job's rules below; other failures have no rule
        }
    ],
}


def jobset(name: str, pods: int, pod: Manifest, annotations: dict[str, str]) -> Manifest:
    """Returns a JobSet of one Job. When one of its pods fails, all are replaced.

    After exit code 75 and after a disruption there is no limit of restarts; after other failures it is `RETRIES`.
    `pods` is the number of processes, one on each node; `pod` their template, see `pod_template`.
    """
    stopped = {"containerName": CONTAINER, "operator": "In", "values": [EXIT_STOPPED]}
    job = {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        # One pod cannot continue alone, so its failure is the Job's.
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": stopped},
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": pod,
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "failurePolicy": FAILURE_POLICY,
            "replicatedJobs": [{"name": HOSTS, "replicas": 1, "template": {"spec": job}}],
        },
    }


def pod_template(
    given: argparse.Namespace, words: list[str], devices: dict[str, int], nodes: dict[str, str]
) -> Manifest:
    """Returns the template of a pod that trains: one process with all the devices of its node.

    `words` are flags of anysat_jax.main, in which $(INDEX) stands for the pod's number; `devices` are the resources of
    a node, {"nvidia.com/gpu": 8}; the labels `nodes` select the nodes.
    """
    runs = volume(given)
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    container = {
        "name": CONTAINER,
        "image": given.image,
        "args": words,
        "env": [
            {"name": "INDEX", "valueFrom": index},
            # A restarted pod reuses the programs that the one before has compiled.
            {"name": "JAX_COMPILATION_CACHE_DIR", "value": f"{RUNS}/.programs"},
        ],
        "resources": {"limits": devices},
        "volumeMounts": [{"name": "runs", "mountPath": RUNS}, {"name": "memory", "mountPath": "/dev/shm"}],
    }
    # Data workers pass batches in shared memory, of which a container has 64 MiB by default.
    memory = {"name": "memory", "emptyDir": {"medium": "Memory"}}
    return {
        # The driver of buckets adds its container to pods with this annotation.
        "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}} if "csi" in runs else {},
        "spec": {
            # The JobSet restarts, all pods together.
            "restartPolicy": "Never",
            # Between SIGTERM and SIGKILL: the time to save.
            "terminationGracePeriodSeconds": 300,
            "nodeSelector": nodes,
            "containers": [container],
            "volumes": [{"name": "runs", **runs}, memory],
        },
    }


def volume(given: argparse.Namespace) -> Manifest:
    """Returns the volume of a bucket, by the Cloud Storage FUSE driver of GKE, or of a persistent volume claim."""
    if not given.bucket:
        return {"persistentVolumeClaim": {"claimName": given.claim}}
    # A checkpoint is committed by renaming its folder; files that another pod has just written must be visible at once.
    options = (
        "implicit-dirs",
        "rename-dir-limit=200000",
        "metadata-cache:ttl-secs:0",
        "metadata-cache:negative-ttl-secs:0",
    )
    attributes = {"bucketName": given.bucket, "mountOptions": ",".join(options)}
    return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}


PORT = 8476  # of the coordinator, process 0, where there are several with GPUs


def manifest(given: argparse.Namespace) -> Manifest:
    """Returns the manifest for a slice of TPUs, or for nodes with GPUs.

    Raises:
      ConfigError: the slice is unknown.
    """
    nodes, annotations = {}, {}
    if given.topology:
        topology = parse_topology(given.topology, tpu=True)
        pods, devices = topology.hosts, {"google.com/tpu": topology.chips // topology.hosts}
        # GKE sets the addresses of a slice's hosts in the environment.
        processes = "auto"
        nodes = {
            "cloud.google.com/gke-tpu-accelerator": topology.generation.gke_label,
            "cloud.google.com/gke-tpu-topology": given.topology.partition(":")[2],
        }
        # All pods on one slice: a node pool is one slice if it has several hosts.
        if pods > 1:
            annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    else:
        pods, devices = given.nodes, {"nvidia.com/gpu": given.gpus}
        # The JobSet's service gives the first pod this host name.
        processes = f"{given.name}-{HOSTS}-0-0.{given.name}:{PORT},{pods},$(INDEX)"
    words = [f"--processes={processes}", *given.rest] if pods > 1 else given.rest
    return jobset(given.name, pods, pod_template(given, words, devices, nodes), annotations)


def check(given: argparse.Namespace) -> None:
    """Checks what would fail in the cluster only.

    Raises:
      ConfigError: an invalid host name, no node or GPU, or a workdir that is lost with its pod.
    """
    # The last pod's name, NAME-host-0-9999, is a host's name: 63 letters at most.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", given.name):
        raise ConfigError(
            f"{given.name!r} cannot name a JobSet; take up to 47 lower-case letters, digits and dashes, a letter first"
        )
    if not given.topology and min(given.nodes, given.gpus) < 1:
        raise ConfigError(f"--nodes={given.nodes} --gpus={given.gpus}: both must be 1 or more")
    if not any(word.startswith(f"--workdir={RUNS}/") for word in given.rest):
        raise ConfigError(f"only {RUNS} outlives a pod; add a workdir there: -- --config=... --workdir={RUNS}/NAME")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    whole = argparse.ArgumentParser(
        "python -m launch.jobset", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole.add_argument("name", metavar="NAME", help="lower-case letters, digits, dashes")
    whole.add_argument("--image", required=True, help="built from the Dockerfile")
    runs = whole.add_mutually_exclusive_group(required=True)
    runs.add_argument("--bucket", type=bucket, help="of Cloud Storage, without gs://")
    runs.add_argument("--claim", help="a persistent volume claim that all nodes may write to (ReadWriteMany)")
    where = whole.add_mutually_exclusive_group(required=True)
    where.add_argument("--topology", help="a slice of TPUs, as in v5e:16x16; launch.aot estimates what fits on it")
    where.add_argument("--nodes", type=int, help="how many nodes with GPUs")
    whole.add_argument("--gpus", type=int, default=8, help="of each node (default: 8)")
    return whole


def main(words: list[str]) -> int:
    """Prints the manifest. Returns the exit code."""
    own, rest = split(words)
    given = parser().parse_args(own)
    given.rest = rest
    try:
        check(given)
        print(json.dumps(manifest(given), indent=2))
    except ConfigError as error:
        return complain(error, "launch.jobset")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
