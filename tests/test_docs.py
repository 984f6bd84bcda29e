"""The documentation: README.md is run from top to bottom in a copy of the checkout; commands and links are checked."""

import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from anysat_jax import SENSORS, main
from anysat_jax.__main__ import COMMANDS
from anysat_jax.scenes import cli
from anysat_jax.weights.exported import FILE_NAME, save_exported
from tests.conftest import ONE_DEVICE
from tests.data_pipelines.own_tiles.folders import write_raster
from tests.scenes.fake_scenes import model, with_head

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
OTHERS = {"gcloud", "kubectl", "docker", "sbatch", "squeue", "scancel", "dask"}  # tests/launch looks closer at some
TOOLS = {
    "pip",
    "pytest",
    "ruff",
    "pre-commit",
    "tensorboard",
    "git",
    "cd",
    ".",
    "mkdir",
    "cp",
    "printf",
} | OTHERS  # the rest is checked further


def blocks(page: pathlib.Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of the languages."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in fenced if language in languages]


def commands(page: pathlib.Path) -> list[list[str]]:
    """Every command of the page, in blocks and in running text, as words."""
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"(?<!`)`((?:python|pip|bash|pytest|ruff) [^`]+)`(?!`)", text)
    lines = "\n".join([*blocks(page, "bash", "sh", "console"), *inline]).replace("\\\n", " ").splitlines()
    pieces = [piece for line in lines for piece in re.split(r"&&|\|\||;|\|", line.removeprefix("$ "))]
    words = [shlex.split(piece, comments=True) for piece in pieces]
    return [[word for i, word in enumerate(piece) if not is_setting(piece, i)] for piece in words if piece]


def is_setting(piece: list[str], index: int) -> bool:
    """Whether a word is one of the leading NAME=value that set an environment variable."""
    return all(re.match(r"[A-Z_]+=", word) for word in piece[: index + 1])


def ids(pages: list[pathlib.Path]) -> list[str]:
    return [str(page.relative_to(REPOSITORY)) for page in pages]


def in_order(page: pathlib.Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page that can be run, with their languages."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


README = in_order(REPOSITORY / "README.md")
# By the file of the config: a command trains a smaller model for less time, and probes fewer tiles.
SMALL = "--config.total_steps=1 --config.model.depth=1 --config.model.predictor_depth=1"
FEW = "--config.evaluate.max_tiles=4 --config.evaluate.pictures=1"
FRACTION = "--config.data.datasets.mini_flair.fraction=0.05"
SHORT = {
    "pretrain.py": f"{SMALL} {FEW} --config.evaluate.datasets=\"('mini_flair',)\"",
    "pretrain.py:prepared": f"{SMALL} --config.evaluate.probe=False",
    "finetune.py": f"--config.epochs=2 {FRACTION}",
    "probe.py": FRACTION,
    "probe.py:prepared": "",
    "finetune.py:prepared": "--config.epochs=1 --config.evaluate.every=1",
    "evaluate.py": "",
}


def shortened(line: str) -> str:
    """The command with less training; "" for what CI itself runs: pip and pytest."""
    kept = []
    for piece in re.split(r" && ", line):
        if piece.startswith(("pip ", "pytest")):
            continue
        config = re.search(r"--config=configs/(\w+\.py(?::prepared)?)", piece)
        trains = config and "launch.aot" not in piece and "--config.job=describe" not in piece
        kept.append(f"{piece} {SHORT[config[1]]}" if trains else piece)
    return " && ".join(kept)


def shortened_commands(text: str) -> list[str]:
    """The commands of a block, with less training."""
    lines = text.replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := shortened(line.partition("  #")[0]))]


def run_commands(given: list[str], folder: pathlib.Path) -> list[str]:
    """Runs commands with bash, and returns what each printed.

    The fake devices of the tests are left out: a user has none, and each would get a share of every batch.
    """
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(folder), "PATH": path, "XLA_FLAGS": ONE_DEVICE}
    printed = []
    for command in given:
        ran = subprocess.run(
            ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}"
        printed.append(ran.stdout + ran.stderr)
    return printed


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the checkout in which README.md's blocks are run; new sensors are forgotten in the end."""
    left_out = shutil.ignore_patterns(".git", "build", "dist", "runs", ".venv", "*.egg-info", "__pycache__", ".*_cache")
    known = dict(SENSORS)
    yield shutil.copytree(REPOSITORY, tmp_path_factory.mktemp("fresh") / "anysat-jax", ignore=left_out)
    SENSORS.clear()
    SENSORS.update(known)


@pytest.fixture(scope="module")
def done():
    """Commands of README.md that have been run."""
    return []


@pytest.fixture(scope="module")
def names():
    """The names that the Python blocks define, for those after them."""
    return {}


@pytest.mark.parametrize("number", range(len(README)), ids=lambda number: f"{number}-{README[number][0]}")
def test_the_readme_works_from_top_to_bottom(number, clone, done, names, monkeypatch, request):
    language, text = README[number]
    if language == "bash":
        run_commands(shortened_commands(text), clone)
        done.extend(shortened_commands(text))
        return
    monkeypatch.chdir(clone)
    if "AnySat.pth" in text:  # a download, for which the small model of the golden numbers stands here
        pytest.importorskip("torch")
        shutil.copy(request.getfixturevalue("golden_folder") / "weights.pth", "AnySat.pth")
        text = text.replace("(1, 768)", "")
    exec(compile(text, f"README.md, block {number}", "exec"), names)


@pytest.mark.parametrize("page", ["TASKS.md", "DATA.md", "SERVING.md"])
def test_the_commands_of_a_page_work_in_order(page, clone, done):
    """The first block of each; of the runs of README.md that TASKS.md repeats, the first is: its steps are not."""
    first, *rest = shortened_commands(in_order(REPOSITORY / "docs" / page)[0][1])
    printed, *_ = run_commands([first, *(command for command in rest if command not in done)], clone)
    assert page != "TASKS.md" or ("compiling" not in printed and "already trained for 1 steps" in printed)


@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="the extra onnx is not installed")
def test_the_onnx_commands_of_the_page_on_serving_work(clone):
    run_commands(shortened_commands(in_order(REPOSITORY / "docs" / "SERVING.md")[1][1]), clone)
    assert (clone / "mini.onnx").stat().st_size > 1e5 and (clone / "aerial.onnx").stat().st_size > 1e5


def test_the_commands_of_the_page_on_sensors_work(clone):
    """On tiles of noise in place of the scene."""
    page = REPOSITORY / "docs" / "SENSORS.md"
    heat, rng = clone / "heat", np.random.default_rng(0)
    splits = {"a": "train", "b": "train", "c": "train", "d": "val", "e": "test"}
    for number, tile in enumerate(splits):
        place = rasterio.Affine(30, 0, 5e5 + 960 * number, 0, -30, 6e6)
        bands, heats = rng.integers(500, 4000, (6, 32, 32), np.uint16), rng.normal(20, 5, (1, 32, 32))
        write_raster(heat / "hls" / f"{tile}_2020-06-01.tif", bands, transform=place)
        write_raster(heat / "temperature" / f"{tile}.tif", heats.astype(np.float32), transform=place)
    rows = [f"{tile},{split}" for tile, split in splits.items()]
    (heat / "tiles.csv").write_text("\n".join(["tile,split", *rows]) + "\n")
    (heat / "heat.toml").write_text(blocks(page, "toml")[0])
    run_commands(shortened_commands(blocks(page, "bash")[0]), clone)


def test_the_python_blocks_of_the_page_on_sensors_run(monkeypatch):
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", dict(SENSORS))
    exec("\n".join(blocks(REPOSITORY / "docs" / "SENSORS.md", "python")), {})


# Parts of the scenes of docs/SCENES.md, by what a command writes.
PARTS = {"chip/emb.tif": "694500,4218000,694660,4218160", "chip/water.tif": "694500,4218000,694740,4218240"}
PARTS["landsat.tif"] = "483285,5627295,483405,5627415"
# Of the datasets of runs/mini, about: mean and standard deviation of all bands, or of each.
MOMENTS = {f"s2@mini_{name}": (1500, 1000) for name in ("pastis_hd", "treesatai_ts")}
MOMENTS |= {"s1@mini_pastis_hd": ([-12, -19, 7], 4), "s1-asc@mini_treesatai_ts": ([0.11, 0.03], 0.1)}
MOMENTS |= {"aerial@mini_treesatai_ts": (80, 40), "l7@mini_planted": (1500, 700)}
MOMENTS |= {"l8@mini_s2naip": ([13_000] * 8 + [5_045] + [28_000] * 2, 1000)}


def test_the_real_runs_of_the_page_on_scenes_work(real_data, tmp_path, monkeypatch):
    """On parts of the scenes, in this process, with tiny models that have not been trained."""
    page = (REPOSITORY / "docs" / "SCENES.md").read_text(encoding="utf-8").partition("\n## Real runs\n")[2]
    *shell, python = re.findall(r"^```(?:bash|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[:3]
    monkeypatch.chdir(tmp_path)
    pathlib.Path("DATA").symlink_to(real_data)
    save_models(pathlib.Path("runs"))
    for line in "".join(shell).splitlines():
        if not line.startswith("anysat"):
            run_commands([line] if "configs/" not in line else [], tmp_path)
            continue
        _, command, *words = shlex.split(line)
        output = pathlib.Path(words[words.index("--output") + 1] if "--output" in words else "chip/emb.html")
        words += ["--bounds", PARTS[output.as_posix()]] if command != "view" else []
        assert cli.main(command, words) == 0 and output.is_file()
        assert command == "view" or output.with_suffix(".png").is_file()
    exec(python, {})
    with rasterio.open("treesat.tif") as file:
        assert file.shape == (30, 30) and file.res == pytest.approx((2, 2)) and np.isfinite(file.read()).all()


def save_models(folder: pathlib.Path) -> None:
    """Writes weights as runs/mini and runs/water have them."""
    count = {key: SENSORS[key.partition("@")[0]].num_bands for key in MOMENTS}
    statistics = {
        key: {"mean": np.broadcast_to(mean, count[key]).tolist(), "std": [std] * count[key]}
        for key, (mean, std) in MOMENTS.items()
    }
    water = with_head("s2", "s1", classes=("not water", "water"), colours=("#ffffff", "#0000ff"))
    water.statistics["s1"] = statistics["s1@mini_pastis_hd"]
    (folder / "mini").mkdir(parents=True)
    (folder / "water").mkdir()
    mini = model(*dict.fromkeys(key.partition("@")[0] for key in MOMENTS))
    save_exported(folder / "mini" / FILE_NAME, mini.config, mini.params, statistics=statistics, source={})
    save_exported(
        folder / "water" / FILE_NAME, water.model, water.encoder_params, head=water.head,
        statistics=water.statistics, source={},
    )  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_commands_exist(page):
    for words in commands(page):
        check_command(words)


def check_command(words: list[str]) -> None:
    tool, *rest = words
    if tool == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), words
        if rest[1] == "anysat_jax.main":
            check_config(rest[2:])
    elif tool == "anysat":
        assert rest[0] in COMMANDS, words
    elif tool in ("python", "bash"):
        assert (REPOSITORY / rest[0]).is_file(), words
    else:
        assert tool in TOOLS, words
    for extra in re.findall(r"\.\[([\w,]+)\]", " ".join(rest)):
        assert set(extra.split(",")) <= extras(), words


def check_config(flags: list[str]) -> None:
    """Whether the config is there, and has the values that are overridden."""
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    path, colon, name = given["config"].partition(":")
    if name != "NAME" and path != "...":
        config = main.load_config(f"{REPOSITORY / path}{colon}{name}")
        main.check_overrides([key.removeprefix("config.") for key in given if key.startswith("config.")], config)
    unknown = [key for key in given if not re.match(r"config(\.|$)|workdir$", key)]
    assert not unknown, flags


def extras() -> set[str]:
    """The extras that setup.py names."""
    section = re.search(r"^EXTRAS = \{\n(.*?)^\}", (REPOSITORY / "setup.py").read_text(), re.MULTILINE | re.DOTALL)[1]
    return set(re.findall(r'^    "(\w+)":', section, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / ".ci" / "run"], ids=ids([*PAGES, REPOSITORY / ".ci" / "run"]))
def test_named_test_files_are_there(page):
    text, known = page.read_text(encoding="utf-8"), {path.name for path in (REPOSITORY / "tests").rglob("*.py")}
    named = re.findall(r"(?<![\w/])((?:tests/[\w/]+/)?test_\w+\.py)", text)
    missing = [name for name in named if not ((REPOSITORY / name).is_file() if "/" in name else name in known)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_named_tests_are_there(page):
    """`test_run.py::test_edges_are_whole`, with or without the folder."""
    files = list((REPOSITORY / "tests").rglob("test_*.py"))
    missing = []
    for file, name in re.findall(r"((?:[\w/]+/)?test_\w+\.py)::(test_\w+)", page.read_text(encoding="utf-8")):
        texts = [path.read_text(encoding="utf-8") for path in files if path.as_posix().endswith(f"/{file}")]
        missing += [] if any(f"def {name}(" in text for text in texts) else [f"{file}::{name}"]
    assert not missing


def test_the_two_commands_are_shown():
    readme = blocks(REPOSITORY / "README.md", "bash")
    assert "pip install -e . && python -m anysat_jax.main --config=configs/pretrain.py --workdir=runs/mini\n" in readme
    assert "pip install -e '.[test]' && pytest\n" in readme


def test_the_table_of_sensors_is_that_of_the_records():
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \| ([\d.]+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    shown = {name: (tuple(bands.split()), float(metres)) for name, bands, metres in rows}
    assert shown == {name: (SENSORS[name].bands, SENSORS[name].metres_per_pixel) for name in shown}
    assert len(shown) == 13
