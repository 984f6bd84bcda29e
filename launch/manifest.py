"""The parts of a JobSet: hosts that start together, and together start again.

The fields are those of jobset.x-k8s.io/v1alpha2 as of JobSet 0.8, of batch/v1 and of core/v1.
"""

from typing import Any

Manifest = dict[str, Any]

CONTAINER = "anysat"
HOSTS = "host"  # the name of the JobSet's one Job
RUNS = "/runs"  # where the pods see the volume that they share
EXIT_STOPPED = 75  # of anysat_jax.main: it was asked to stop, and has saved
RETRIES = 3  # after any other failure


def jobset(name: str, pods: int, pod: Manifest, annotations: dict[str, str]) -> Manifest:
    """A JobSet of one Job. When one of its pods ends in failure, all are replaced.

    Asked to stop (exit code 75) or moved by the cluster (a disruption) they always are; else `RETRIES` times.

    Args:
      pods: processes, one on each node.
      pod: their template, see `pod_template`.
      annotations: of the JobSet.
    """
    failure_policy = {
        "maxRestarts": RETRIES,
        "restartStrategy": "BlockingRecreate",  # no process of one start lives when the next begins
        "rules": [
            {
                "name": "savedAndStopped",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],  # the Job's rules below; other failures have no rule
            }
        ],
    }
    hosts = {"name": HOSTS, "replicas": 1, "template": {"spec": _job(pods, pod)}}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"failurePolicy": failure_policy, "replicatedJobs": [hosts]},
    }


def _job(pods: int, pod: Manifest) -> Manifest:
    stopped = {"containerName": CONTAINER, "operator": "In", "values": [EXIT_STOPPED]}
    moved = {"type": "DisruptionTarget", "status": "True"}
    return {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod alone cannot go on: its failure is the Job's
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": stopped},
                {"action": "FailJob", "onPodConditions": [moved]},
            ]
        },
        "template": pod,
    }


def pod_template(
    image: str, words: list[str], devices: dict[str, int], runs: Manifest, nodes: dict[str, str]
) -> Manifest:
    """A pod that trains: one process with all the devices of its node.

    Args:
      image: of the repository's Dockerfile.
      words: flags of anysat_jax.main; $(INDEX) stands for the pod's number.
      devices: how many of which resource a node has, {"nvidia.com/gpu": 8}.
      runs: the volume at /runs, `bucket_volume` or `claim_volume`.
      nodes: labels of the nodes that will do.
    """
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    container = {
        "name": CONTAINER,
        "image": image,
        "args": words,
        "env": [
            {"name": "INDEX", "valueFrom": index},
            # A pod that is made again finds the programs that the one before has compiled.
            {"name": "JAX_COMPILATION_CACHE_DIR", "value": f"{RUNS}/.programs"},
        ],
        "resources": {"limits": devices},
        "volumeMounts": [{"name": "runs", "mountPath": RUNS}, {"name": "memory", "mountPath": "/dev/shm"}],
    }
    memory = {"name": "memory", "emptyDir": {"medium": "Memory"}}  # data workers share memory; the default is 64 MiB
    return {
        # The driver of buckets adds its container to pods with this annotation; others do not look at it.
        "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}} if "csi" in runs else {},
        "spec": {
            "restartPolicy": "Never",  # the JobSet restarts
            "terminationGracePeriodSeconds": 300,  # between SIGTERM and SIGKILL: the time to save
            "nodeSelector": nodes,
            "containers": [container],
            "volumes": [{"name": "runs", **runs}, memory],
        },
    }


def claim_volume(claim: str) -> Manifest:
    """A persistent volume claim, which all nodes may write to (ReadWriteMany)."""
    return {"persistentVolumeClaim": {"claimName": claim}}


def bucket_volume(bucket: str) -> Manifest:
    """A bucket, by the Cloud Storage FUSE driver of GKE."""
    # A checkpoint becomes whole by renaming its folder; what another pod has just written must be seen at once.
    options = (
        "implicit-dirs",
        "rename-dir-limit=200000",
        "metadata-cache:ttl-secs:0",
        "metadata-cache:negative-ttl-secs:0",
    )
    attributes = {"bucketName": bucket, "mountOptions": ",".join(options)}
    return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
