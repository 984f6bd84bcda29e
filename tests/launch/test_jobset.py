"""The manifests for Kubernetes: valid by the types of JobSet, Job and Pod, and saying what they should."""

import json

import pytest

from launch import jobset
from launch.chips import GENERATIONS
from launch.jobset import EXIT_STOPPED

FLAGS = ["--config=configs/pretrain.py:geoplex", "--workdir=/runs/geoplex"]
CASES = {
    "tpus, bucket": ["geo", "--image=registry/anysat:tpu", "--bucket=tiles", "--topology=v5e:16x16"],
    "tpus, claim": ["geo", "--image=registry/anysat:tpu", "--claim=runs", "--topology=v5p:8x8x16"],
    "one host": ["geo", "--image=registry/anysat:tpu", "--claim=runs", "--topology=v6e:2x4"],
    "gpus": ["geo", "--image=registry/anysat:cuda", "--claim=runs", "--nodes=4", "--gpus=8"],
    "one node": ["geo", "--image=registry/anysat:cuda", "--bucket=tiles", "--nodes=1", "--gpus=2"],
}


def manifest(capsys, case: str) -> dict:
    assert jobset.main([*CASES[case], "--", *FLAGS]) == 0
    return json.loads(capsys.readouterr().out)


def job_of(made: dict) -> dict:
    [replicated] = made["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod_of(made: dict) -> dict:
    return job_of(made)["template"]["spec"]


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_valid(capsys, case):
    """The types come from the OpenAPI description of Kubernetes and JobSet; what they do not know, they leave out."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    made = manifest(capsys, case)
    assert models.JobsetV1alpha2JobSet.from_dict(made).to_dict() == made


def test_the_check_finds_mistakes(capsys):
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    made = manifest(capsys, "gpus")
    pod_of(made)["restartPolice"] = "Never"
    assert models.JobsetV1alpha2JobSet.from_dict(made).to_dict() != made
    del pod_of(made)["restartPolice"]
    job_of(made)["parallelism"] = "four"
    with pytest.raises(ValueError, match="parallelism"):
        models.JobsetV1alpha2JobSet.from_dict(made)


def test_words_that_the_types_leave_open_are_among_those_that_they_list(capsys):
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    made = manifest(capsys, "gpus")
    [rule] = made["spec"]["failurePolicy"]["rules"]
    assert rule["action"] in models.JobsetV1alpha2FailurePolicyRule.model_fields["action"].description
    known = models.IoK8sApiBatchV1PodFailurePolicyRule.model_fields["action"].description
    assert all(one["action"] in known for one in job_of(made)["podFailurePolicy"]["rules"])


@pytest.mark.parametrize("case", CASES)
def test_saved_and_stopped_always_starts_again(capsys, case):
    made = manifest(capsys, case)
    codes, moved = job_of(made)["podFailurePolicy"]["rules"]
    [container] = pod_of(made)["containers"]
    assert codes["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [EXIT_STOPPED]}
    assert moved["onPodConditions"][0]["type"] == "DisruptionTarget"
    policy = made["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 3 and policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    # Kubernetes takes a pod failure policy of such pods only, and one pod's failure has to be the Job's.
    assert pod_of(made)["restartPolicy"] == "Never" and job_of(made)["backoffLimit"] == 0


def test_the_exit_code_is_that_of_the_command_line():
    from anysat_jax import main

    assert main.EXIT_STOPPED == EXIT_STOPPED


@pytest.mark.parametrize(
    ("case", "pods", "chips"), [("tpus, bucket", 64, 4), ("tpus, claim", 256, 4), ("one host", 1, 8)]
)
def test_a_slice_has_a_pod_on_each_host(capsys, case, pods, chips):
    made = manifest(capsys, case)
    job, pod = job_of(made), pod_of(made)
    assert job["parallelism"] == job["completions"] == pods and job["completionMode"] == "Indexed"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    words = pod["containers"][0]["args"]
    assert words == (["--processes=auto", *FLAGS] if pods > 1 else FLAGS)
    assert bool(made["metadata"]["annotations"]) == (pods > 1)


def test_nodes_are_those_of_the_topology(capsys):
    for generation in GENERATIONS:
        shape = GENERATIONS[generation].shapes[-1]
        assert jobset.main(["g", "--image=i", "--claim=c", f"--topology={generation}:{shape}", "--", *FLAGS]) == 0
        labels = pod_of(json.loads(capsys.readouterr().out))["nodeSelector"]
        assert labels["cloud.google.com/gke-tpu-topology"] == shape
        assert labels["cloud.google.com/gke-tpu-accelerator"] == GENERATIONS[generation].gke_label


def test_gpu_nodes_find_the_first(capsys):
    made = manifest(capsys, "gpus")
    container = pod_of(made)["containers"][0]
    job = made["spec"]["replicatedJobs"][0]["name"]
    assert container["args"] == [f"--processes=geo-{job}-0-0.geo:{jobset.PORT},4,$(INDEX)", *FLAGS]
    assert "job-completion-index" in container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"]
    assert container["env"][0]["name"] == "INDEX" and container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    alone = pod_of(manifest(capsys, "one node"))["containers"][0]
    assert alone["args"] == FLAGS and alone["resources"]["limits"] == {"nvidia.com/gpu": 2}


@pytest.mark.parametrize("case", CASES)
def test_runs_lie_on_the_shared_volume(capsys, case):
    made = manifest(capsys, case)
    pod = pod_of(made)
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    runs = next(volume for volume in pod["volumes"] if volume["name"] == "runs")
    assert mounts["runs"] == "/runs" and set(mounts) == {volume["name"] for volume in pod["volumes"]}
    annotations = job_of(made)["template"]["metadata"].get("annotations", {})
    if any(word.startswith("--bucket") for word in CASES[case]):
        assert runs["csi"]["volumeAttributes"]["bucketName"] == "tiles"
        assert annotations == {"gke-gcsfuse/volumes": "true"}
    else:
        assert runs["persistentVolumeClaim"] == {"claimName": "runs"} and not annotations


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("--topology=v5e:16x16", "--topology=v5e:9x9"), "v5e has no slice '9x9'"),
        (("geo", "Geo_Plex"), "'Geo_Plex' cannot name a JobSet"),
        (("geo", "g" * 48), "cannot name a JobSet"),
        (("--topology=v5e:16x16", "--nodes=0"), "--nodes=0 --gpus=8: both must be 1 or more"),
        (("--workdir=/runs/geoplex", "--workdir=/tmp/geoplex"), "only /runs outlives a pod"),
    ],
)
def test_mistakes_are_said(capsys, change, says):
    words = [change[1] if word == change[0] else word for word in [*CASES["tpus, bucket"], "--", *FLAGS]]
    assert jobset.main(words) == 1
    printed = capsys.readouterr()
    assert says in printed.err and not printed.out


@pytest.mark.parametrize("name", ["gs://tiles", "", "tiles/runs"])
def test_a_bucket_that_cannot_be_is_refused(capsys, name):
    with pytest.raises(SystemExit):
        jobset.main(["geo", "--image=i", f"--bucket={name}", "--topology=v5e:4x4", "--", *FLAGS])
    assert f"{name!r} cannot name a bucket; give the name alone, without gs://" in capsys.readouterr().err


@pytest.mark.parametrize("drop", ["--image=registry/anysat:tpu", "--bucket=tiles", "--topology=v5e:16x16"])
def test_what_is_needed_is_asked_for(capsys, drop):
    with pytest.raises(SystemExit):
        jobset.main([word for word in CASES["tpus, bucket"] if word != drop])
    assert drop.partition("=")[0] in capsys.readouterr().err
