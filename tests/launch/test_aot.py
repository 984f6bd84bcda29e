"""Programs for chips that are not there: which they are, whether they fit, and how long a step takes at least."""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict

from anysat_jax import main
from anysat_jax.configs import pretrain
from anysat_jax.errors import ConfigError
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.masking import sample_patch_masks
from launch import aot as aot_command
from launch import aot_compile
from launch.aot_compile import (
    MOST_TRIES,
    Measured,
    Results,
    all_cases,
    batch_shapes,
    batch_unit,
    mask_shapes,
    mesh_shape,
    out_of_memory,
    possible_masks,
    search,
    settings_of,
)
from launch.chips import CHIPS, GIB, parse_topology
from launch.hlo import Collective
from launch.roofline import (
    Work,
    as_json,
    as_markdown,
    compiled_row,
    estimate,
    paper_messages,
    paper_row,
    work_of,
)
from tests.launch.tools import REPOSITORY

TINY = dict(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2)
SEED_BATCHES = {"treesatai_ts": 384, "pastis_hd": 8, "flair": 96, "planted": 2048, "s2naip": 16}


@pytest.fixture
def config():
    config = pretrain.get_config("geoplex")
    config.model.update(TINY)
    return config


def measured(batch_size=16, peak=10.0, fits=True, **changes):
    """A program on v5e:4x4 whose memory is round numbers of GiB."""
    values = dict(topology="v5e:4x4", dataset="flair", patch_size=10.0, batch_size=batch_size, mesh=(16, 1, 1))
    values |= dict(settings={}, fits=fits, peak=peak * GIB, state=2 * GIB, traffic=819e9 / 10)
    return Measured(**values | dict(collectives=(Collective("all-reduce", 16, 1, 1e9),)) | changes)


def test_geoplex_has_fourteen_programs_with_the_papers_batches(config):
    cases = all_cases(config)
    assert len(cases) == 14
    assert {case.dataset: case.batch_size for case in cases} == SEED_BATCHES
    assert [case.name for case in all_cases(config, "flair-20,planted")] == ["flair-20", "planted-30", "planted-60"]
    with pytest.raises(ConfigError, match="mini_flair.*it has flair"):
        all_cases(config, "mini_flair")


def test_shapes_are_those_of_the_datasets(config):
    batch = batch_shapes(all_cases(config, "planted-60")[0])
    shapes = {name: one.values.shape for name, one in batch.observations.items()}
    assert shapes == {
        "s2": (2048, 8, 10, 12, 12),
        "s1": (2048, 8, 3, 12, 12),
        "l7": (2048, 20, 6, 4, 4),
        "alos": (2048, 4, 3, 4, 4),
        "modis": (2048, 60, 7, 1, 1),
    }
    assert batch.observations["s2"].pixel_mask.shape == shapes["s2"] and batch.grid == (2, 2)
    assert batch_shapes(all_cases(config, "flair-50")[0]).observations["s2"].dates.shape == (96, 35)


def test_a_series_of_unknown_length_needs_a_limit():
    config = pretrain.get_config("mini")
    config.data.datasets.mini_flair.max_dates = None
    with pytest.raises(ConfigError, match=r"data\.datasets\.mini_flair\.max_dates"):
        batch_shapes(all_cases(config, "mini_flair")[0])


def test_masks_that_training_draws_are_among_the_programs(config):
    masks = PretrainConfig.read(config).pretrain
    for case in all_cases(config):
        batch = batch_shapes(case.with_batch(3))
        sizes = {one.size for one in possible_masks(batch, masks)}
        drawn = {sample_patch_masks(np.random.default_rng(seed), batch.grid, 3, masks).size for seed in range(8)}
        assert drawn <= sizes, case.name
        most = mask_shapes(settings_of(config).model, batch, masks).size
        assert most in sizes and sum(most) >= max(map(sum, drawn))


@pytest.mark.parametrize("largest", [0, 1, 5, 37, 200])
def test_search_finds_the_largest_batch_in_few_compilations(largest):
    """Memory grows from 2 GiB by a step with every 16 tiles, and a bit more than linearly."""
    tried = []

    def measure(batch_size):
        tried.append(batch_size)
        units = batch_size / 16
        peak = 2 + 13.7 * (0.9 * units / (largest + 0.5) + 0.1 * (units / (largest + 0.5)) ** 2)
        return measured(batch_size, peak=peak, fits=units <= largest)

    fits, fails = search(measure, measure(16), 16, 15.75 * GIB)
    assert fits <= 16 * largest < fails and fails - fits <= max(16, fits / 8)
    assert len(tried) == len(set(tried)) <= MOST_TRIES and all(size % 16 == 0 for size in tried)


def test_what_xla_says_of_memory():
    message = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 20.50G of 15.75G hbm. Exceeded by 4.75G."
    assert out_of_memory(message) == (20.5 * GIB, 15.75 * GIB)
    with pytest.raises(ConfigError, match="cannot compile the step: INTERNAL: mosaic"):
        out_of_memory("INTERNAL: mosaic\nstack")


def test_topologies():
    pod = parse_topology("v5p:8x8x16")
    assert pod.chips == 1024 and pod.ring_bandwidth(1024) == 600e9 and pod.ring_bandwidth(8) == 200e9
    assert parse_topology("v5e:16x16").ring_bandwidth(256) == 200e9
    assert parse_topology("v5e:4x4").ring_bandwidth(16) == 100e9  # its sides do not close to rings
    hosts = parse_topology("h100:16")
    assert hosts.ring_bandwidth(8) == CHIPS["h100"].links and hosts.ring_bandwidth(16) == CHIPS["h100"].network
    wrong = {"v7:4x4": "not a topology", "v5e": "it has 1x1", "v5e:4x4x4": "no slice", "h100:0": "write h100:N"}
    for name, reason in wrong.items():
        with pytest.raises(ConfigError, match=reason):
            parse_topology(name)


def test_a_mesh_must_make_up_the_slice(config):
    config.mesh.fsdp = 4
    assert mesh_shape(config, parse_topology("v5e:4x4")) == (4, 4, 1)
    config.mesh.data = 3
    with pytest.raises(ConfigError, match="3 x 4 x 1 is not the 16 chips of v5e:4x4"):
        mesh_shape(config, parse_topology("v5e:4x4"))


def test_a_step_takes_as_long_as_what_takes_longest():
    slice_ = parse_topology("v5e:4x4")
    work = Work({"spatial": 16 * 197e12, "contrastive": 0.0}, again=0.0, tiles=16)
    program = measured()
    step = estimate(work, slice_, program.traffic, program.collectives)
    assert (step.compute, step.memory) == (1.0, pytest.approx(0.1))
    assert step.network == pytest.approx(2 * 15 / 16 * 1e9 / 100e9)
    assert step.least == 1.0 and step.mfu == 1.0 and step.bound == "compute"
    assert step.one_by_one == pytest.approx(1.0 + step.network)
    work = Work({"spatial": work.model / 2, "contrastive": work.model / 2}, work.model, 16)
    slower = estimate(work, slice_, program.traffic, program.collectives)
    assert slower.compute == pytest.approx(0.5 + 0.5 * 6 + 1) and slower.mfu == pytest.approx(1 / slower.compute)


def test_messages_on_paper(config):
    case = all_cases(config, "flair-20")[0]
    gradients, tokens = paper_messages(settings_of(config), case, 8)
    assert tokens.size == 96 * 2 * 25 * TINY["dim"] * 4  # two sensors, 25 patches
    assert 0 < gradients.size < 1e6
    assert paper_messages(settings_of(config), case, 1) == []
    config.mesh.fsdp = 2
    with pytest.raises(ConfigError, match="data parallelism only"):
        paper_row(Results(config, REPOSITORY), case, parse_topology("h100:8"))


def test_rows_from_files(config, tmp_path):
    results, slice_ = Results(config, tmp_path), parse_topology("v5e:4x4")
    case = all_cases(config, "flair-10")[0]
    for size, peak in ((96, 5.0), (192, 9.0), (384, 18.0)):
        one = measured(size, peak=peak, fits=peak < 16)
        path = results.path(slice_, case.with_batch(size))
        one.write(path)
        assert Measured.read(path) == one
    row = compiled_row(results, case, slice_)
    # A line through 9 GiB at 192 tiles and 18 GiB at 384 meets 15.75 GiB at 336.
    assert (row.fits, row.largest, row.guessed) == (True, 336, True)
    measured(352, peak=16.5, fits=False).write(results.path(slice_, case.with_batch(352)))
    measured(336, peak=15.7).write(results.path(slice_, case.with_batch(336)))
    row = compiled_row(results, case, slice_)
    assert (row.largest, row.guessed) == (336, False)
    work = work_of(settings_of(config), case, 16)
    assert sum(row.flops_per_tile.values()) == pytest.approx(
        work.model / work.tiles
    ) and row.intensity == pytest.approx(work.model / 16 / 81.9e9)
    assert compiled_row(results, case.with_batch(384), slice_).step_ms is None
    # As many tiles on each GPU: the state, and the rest as it was on the TPU.
    paper = paper_row(results, case.with_batch(48), parse_topology("h100:8"))
    assert paper.peak == 5 * GIB and paper.fits and "v5e:4x4" in paper.about
    half = work_of(settings_of(config), case.with_batch(48), 8)
    assert paper.intensity == pytest.approx(half.model / (16 * 81.9e9 / 2))
    assert json.loads(as_json([row, paper]))[0]["mfu"] == row.mfu
    assert (
        as_markdown([row]).splitlines()[-1].startswith("| v5e:4x4 | 16x1x1 | flair | 10 | 96 | yes | 5.0 of 16 | 336 |")
    )
    config.pretrain.temperature = 0.2  # another config, other programs
    assert not results.path(slice_, case).exists()


def aot(*arguments):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "launch.aot", "--config=configs/pretrain.py", "--only=mini_flair", *arguments]
    command += [f"--config.model.{name}={value}" for name, value in TINY.items()]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture(autouse=True)
def saved_flags():
    """Flags of the command can be set in this process: they are as before when a test ends."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["aot"])
    with flagsaver.flagsaver():
        yield


@pytest.fixture
def given(tmp_path):
    """Sets flags of the command for a test: no process is started."""
    (tmp_path / "file").write_text("")
    return lambda flag, name: setattr(flags.FLAGS, flag, str(tmp_path / name))


@pytest.fixture
def aot_here(capsys, monkeypatch):
    """The command in this process, which has loaded jax: returns its exit code, and what it printed."""
    monkeypatch.setattr(main, "quiet_logs", lambda: None)  # changes the logs of the whole process

    def run(config=None, **values):
        given = pretrain.get_config("mini")
        given.model.update(TINY)
        given.update_from_flattened_dict(config or {})
        for name, value in dict(dict(only="mini_flair", round=True, json=None, markdown=None), **values).items():
            setattr(flags.FLAGS, name, value)
        flags.FLAGS.config = given
        code = aot_command.main([])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("flag", "name", "says"),
    [
        ("results", "file/below", "must be a folder"),
        ("results", "file", "must be a folder"),
        ("json", "nowhere/table.json", "must be a file in an existing folder"),
        ("json", "", "must be a file in an existing folder"),
        ("markdown", "page.md", "must be an existing page"),
    ],
)
def test_places_that_cannot_be_written_are_refused_before_anything_is_compiled(given, flag, name, says):
    given(flag, name)
    with pytest.raises(ConfigError, match=f"--{flag}=.*{says}"):
        aot_command.check_outputs()


@pytest.mark.parametrize(("flag", "name"), [("results", "new/below"), ("json", "new.json"), ("markdown", "file")])
def test_places_that_can_be_written_are_taken(given, flag, name):
    given(flag, name)
    aot_command.check_outputs()


@pytest.mark.parametrize(
    ("config", "json", "says"),
    [
        ({"mesh.fsdp": 3}, None, "2 x 3 x 1 is not the 8 chips of h100:8; change one of them"),
        ({}, "nowhere/x.json", "--json=nowhere/x.json must be a file in an existing folder"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(aot_here, config, json, says):
    code, output, errors = aot_here(config, topology=["h100:8"], json=json)
    assert code == 1 and output == "" and errors.count("\n") == 1
    assert errors.startswith("launch.aot: ") and errors.strip().endswith(says)


def test_a_slice_that_there_is_not_is_refused_in_one_sentence(aot_here):
    """As a process: tests/test_package.py."""
    code, output, errors = aot_here(topology=["v5e:3x5"])
    assert code == 1 and output == "" and errors.count("\n") == 1
    assert "v5e has no slice '3x5'" in errors and "Traceback" not in errors


@pytest.mark.slow
def test_a_step_compiles_for_tpus_that_are_not_there(tmp_path):
    """Needs libtpu, no TPU; a second start finds what the first one measured."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[tpu]'")
    file = tmp_path / "table.json"
    for _ in range(2):
        result = aot("--topology=v5e:2x2", f"--results={tmp_path}", f"--json={file}")
        assert result.returncode == 0, result.stderr[-2000:]
    assert "compiling" not in result.stderr  # the second time
    (row,) = json.loads(file.read_text())
    assert row["mesh"] == [4, 1, 1] and row["fits"] and 0 < row["peak"] < row["memory"] == 16 * GIB
    kinds = {one["kind"] for one in row["collectives"]}
    assert "all-reduce" in kinds and all(one["group"] == 4 for one in row["collectives"])
    assert 0 < row["mfu"] < 1 and 0 < row["step_ms"] <= row["one_by_one_ms"]


def test_a_gpu_s_table_is_printed_and_put_into_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table h100:2 -->\nold\n<!-- end -->\nafter\n")
    result = aot("--topology=h100:2", f"--markdown={page}")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "mini_flair" in result.stdout and "1 all-reduce in 2s" in result.stdout
    lines = page.read_text().splitlines()
    assert lines[:2] == ["before", "<!-- table h100:2 -->"] and lines[-2:] == ["<!-- end -->", "after"]
    assert lines[4].startswith("| h100:2 | 2x1x1 | mini_flair | 10 | 8 | ") and "old" not in lines
    assert float(lines[4].split("|")[6]) > 0  # TFLOP


def test_batches_that_cannot_be_cut_are_changed_and_told_of_or_refused(aot_here, tmp_path):
    remark = "launch.aot: batches (mini_flair 8) cannot be cut into 3 equal parts; "
    flag, table = "--config.data.datasets.mini_flair.batch_size=9", tmp_path / "table.json"
    code, _, errors = aot_here(topology=["h100:3"], json=str(table))
    assert code == 0 and errors.count(remark) == 1, errors
    assert f"needed to train on h100:3: {flag}\n" in errors
    assert [row["batch_size"] for row in json.loads(table.read_text())] == [9]
    code, output, errors = aot_here(topology=["h100:3"], round=False)
    assert code == 1 and output == "" and errors.count("\n") == 1
    assert errors.startswith(f"{remark}give {flag}, or ")
    nine = {"data.datasets.mini_flair.batch_size": 9}
    assert aot_here(nine, topology=["h100:3"], round=False)[0] == 0


def test_the_step_is_lowered_as_training_does(config, tmp_path, monkeypatch):
    """On fake devices of this machine, laid out as a slice's."""
    monkeypatch.setattr(aot_compile, "topology_devices", lambda name: jax.devices()[:4])
    monkeypatch.setattr(aot_compile, "libtpu_version", lambda: "none")
    config = pretrain.get_config("mini")
    config.model.update(TINY)
    config.data.datasets = ConfigDict(dict(mini_flair=config.data.datasets.mini_flair))  # two sensors, not eleven
    compiler = aot_compile.Compiler(parse_topology("v5e:2x2"), Results(config, tmp_path, quick=True))
    case = all_cases(config, "mini_flair")[0]
    found = compiler.measure(case)
    assert found.fits and found.mesh == (4, 1, 1) and batch_unit(config, compiler.topology) == 4
    assert {one.group for one in found.collectives} == {4}
    _, tokens = paper_messages(settings_of(config), case, 4)
    (gathered,) = (one.size for one in found.collectives if one.kind == "all-gather")
    assert tokens.size <= gathered < 2.5 * tokens.size  # CPUs may make two, and gather flags too
    assert found.peak > found.state > 0 and found.traffic > found.state
    assert compiler.measure(case) == found and compiled_row(compiler.results, case, compiler.topology).fits
