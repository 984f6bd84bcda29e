"""docs/LAUNCH.md: its commands are those that the launchers and gcloud take."""

import json
import re
import shlex

import pytest
from jax.sharding import AbstractMesh

from anysat_jax.configs import pretrain
from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.train.sharding import check_batch_sizes, check_heads
from launch import jobset, tpu
from launch.chips import parse_topology
from launch.tpu import split
from tests.launch.test_tpu import ACTIONS, dry_run
from tests.launch.tools import REPOSITORY, gcloud_refuses

TEXT = (REPOSITORY / "docs" / "LAUNCH.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()] + re.findall(r"`(python -m launch\.tpu [^`]+)`", TEXT)


def starting(*words: str) -> list[list[str]]:
    """The commands that begin with the words, without them and without what they are piped into."""
    split_up = [shlex.split(line.partition(" | ")[0]) for line in LINES]
    return [line[len(words) :] for line in split_up if line[: len(words)] == list(words)]


def test_every_action_on_slices_is_shown_and_works(capsys):
    shown = starting("python", "-m", "launch.tpu")
    assert {words[0] for words in shown} == set(tpu.ACTIONS)
    for words in shown:
        own, rest = split([word for word in words if word != "--dry_run"])
        assert tpu.main([*own, "--dry_run", *(["--", *rest] if rest else [])]) == 0
    assert "v5litepod-256" in capsys.readouterr().out


def test_manifests_are_printed(capsys):
    shown = starting("python", "-m", "launch.jobset")
    made = []
    for words in shown:
        assert jobset.main(words) == 0
        made.append(json.loads(capsys.readouterr().out))
    devices = [
        one["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        for one in made
    ]
    assert devices == [{"google.com/tpu": 4}, {"nvidia.com/gpu": 8}]
    assert {one["metadata"]["name"] for one in made} == {"geo"}


def test_the_node_pool_is_that_of_the_slice():
    [words] = starting("gcloud", "container", "node-pools", "create")
    flags = dict(word.removeprefix("--").split("=") for word in words if "=" in word)
    assert int(flags["num-nodes"]) == parse_topology(f"v5e:{flags['tpu-topology']}").hosts


def check_batches(words: list[str], devices: int) -> None:
    """That training takes the page's flags on so many devices."""
    config = pretrain.get_config("geoplex")
    given = dict(word.removeprefix("--config.").split("=") for word in words if word.startswith("--config."))
    config.update_from_flattened_dict(
        {name: value if name == "data.root" else int(value) for name, value in given.items()}
    )
    tensor = config.mesh.tensor
    mesh = AbstractMesh((devices // tensor, 1, tensor), ("data", "fsdp", "tensor"))
    check_batch_sizes(config.data.datasets, mesh)
    check_heads(ModelConfig.from_section(config.model), mesh)


def test_batches_can_be_shared_out_on_the_devices_shown():
    on_slices = [*starting("python", "-m", "launch.tpu", "run"), *starting("python", "-m", "launch.jobset")]
    [on_slurm] = starting("sbatch")
    [on_host] = starting("bash", "launch/keep_going.sh")
    assert len(on_slices) == 3 and "--nodes=4" in on_slurm and "--gpus-per-node=8" in on_slurm
    for words in (*on_slices, on_slurm):
        assert "--config=configs/pretrain.py:geoplex" in words
        check_batches(words, 32 if "--gpus=8" in words or words is on_slurm else 256)
    check_batches(on_host, 8)
    with pytest.raises(ConfigError, match="cannot be cut"):
        check_batches(on_host, 256)


@pytest.mark.parametrize("name", ["keep_going.sh", "slurm.sh", "tpu_host.sh", "tpu.py", "jobset.py", "local.py"])
def test_every_launcher_is_described(name):
    assert (REPOSITORY / "launch" / name).is_file() and name in TEXT


NAMES = {"BUCKET": "tiles", "PROJECT": "my-project", "NUMBER": "1234"}
MISTAKE = "gcloud compute tpus queued-resources describe geo --zohne=us-west4-a"


def test_gcloud_takes_every_command_and_finds_a_mistake(capsys, tmp_path):
    shown = [shlex.join(words) for action in ACTIONS.values() for words in dry_run(capsys, action)]
    of_launcher = [line for line in shown if line.startswith("gcloud ")]
    of_page = [re.sub("|".join(NAMES), lambda found: NAMES[found[0]], line) for line in LINES if line[:7] == "gcloud "]
    assert (len(of_launcher), len(of_page)) == (9, 4)
    [said] = gcloud_refuses([*of_launcher, *of_page, MISTAKE], tmp_path)
    assert "--zohne" in said
