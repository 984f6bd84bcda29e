"""What the documentation shows works: Python blocks are run, commands and links are checked."""

import importlib.util
import pathlib
import re
import shlex

import optax
import pytest
from ml_collections import ConfigDict

from anysat_jax import SENSORS, main
from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.step import create_state
from anysat_jax.train.checkpoints import Checkpoints
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
OTHERS = {"gcloud", "kubectl", "docker", "sbatch", "squeue", "scancel", "dask"}  # tests/launch looks closer at some
TOOLS = {"pip", "pytest", "ruff", "pre-commit", "tensorboard", "git", "cd", "."} | OTHERS  # the rest is checked further
MODEL = dict(
    preset="tiny", dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("aerial", "s2")
)


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


@pytest.fixture
def a_run(tmp_path, monkeypatch):
    """A folder in which there is a run `runs/mini`, as the pages assume; new sensors are forgotten."""
    monkeypatch.chdir(tmp_path)
    known = dict(SENSORS)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1))
    state = create_state(ModelConfig.from_section(ConfigDict(MODEL)), optax.sgd(0.1), mesh, seed=0)
    with Checkpoints(tmp_path / "runs" / "mini" / "checkpoints") as checkpoints:
        checkpoints.save(state, {}, {"step": 1, "config": {"model": MODEL, "dtype": "float32"}, "record": {}})
    yield
    SENSORS.clear()
    SENSORS.update(known)


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=ids(WITH_PYTHON))
def test_python_blocks_run(page, a_run):
    """In their order, each with what those before it have defined."""
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


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


def test_the_two_commands_are_shown():
    readme = blocks(REPOSITORY / "README.md", "bash")
    assert "pip install -e . && python -m anysat_jax.main --config=configs/pretrain.py\n" in readme
    assert "pip install -e '.[test]' && pytest\n" in readme


def test_the_table_of_sensors_is_that_of_the_records():
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \| ([\d.]+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    shown = {name: (tuple(bands.split()), float(metres)) for name, bands, metres in rows}
    assert shown == {name: (SENSORS[name].bands, SENSORS[name].metres_per_pixel) for name in shown}
    assert len(shown) == 13
