"""The command line: what it answers before any work."""

import pathlib
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from anysat_jax import main
from anysat_jax.configs import finetune, pretrain
from anysat_jax.errors import ConfigError
from anysat_jax.main import describe
from anysat_jax.model.config import ModelConfig
from anysat_jax.train.workdir import INTERRUPTED

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
CONFIG = f"--config={REPOSITORY / 'configs' / 'pretrain.py'}"


def command(*flags):
    return subprocess.run(
        [sys.executable, "-m", "anysat_jax.main", *flags], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def base_table():
    return describe(ModelConfig.from_preset("base"))


def test_base_has_the_parameters_of_the_paper(base_table):
    counts = {
        line.split("  ")[0].split(" (")[0]: line.split()[-2] for line in base_table.splitlines() if line[-1] == "M"
    }
    assert [counts[name] for name in ("projectors", "spatial", "combiner", "encoder")] == [
        "34.35",
        "42.53",
        "49.03",
        "125.91",
    ]
    assert 29.0 <= float(counts["predictor"]) < 30.0
    assert sum(name.startswith("projector ") for name in counts) == 11


def test_describe_prints_the_table(base_table):
    result = command(f"{CONFIG}:geoplex", "--config.job=describe")
    assert result.returncode == 0 and result.stdout.strip() == base_table.strip()


def test_help_teaches():
    text = command("--help").stdout
    for part in (
        "configs/pretrain.py:treesatai_ts",
        "configs/evaluate.py",
        "--config.model.dim=128",
        "--workdir",
        "describe",
        "Exit codes",
    ):
        assert part in text


def test_overrides_reach_the_config():
    result = command(CONFIG, "--config.job=describe", "--config.model.dim=128", "--config.model.sensors=('s2',)")
    assert result.stdout.startswith("dim 128, depth 2, 4 heads") and "projector s2 " in result.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([CONFIG, "--config.model.dmi=128"], "no value 'model.dmi' (--config.model.dmi); did you mean model.dim"),
        ([CONFIG, "--config.job=dance"], "unknown job 'dance'; jobs: pretrain, finetune, probe, evaluate, describe"),
        ([], "give a config: --config=configs/pretrain.py"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(flags, message):
    result = command(*flags)
    assert result.returncode == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("job", ["pretrain", "describe"])
def test_a_config_of_another_job_is_refused(job):
    config = finetune.get_config("mini_flair")
    config.job = job
    with pytest.raises(ConfigError, match=f"the job {job} takes a config of configs/pretrain.py, and 'mini_flair' is"):
        main.run_job(config)


# In a long call of C, which Python's own handler would wait for.
BUSY = "import hashlib; from anysat_jax import main; main.end_soon_on_interrupt(); print(1, flush=True); {}"
LONG_CALL = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"


@pytest.mark.parametrize(
    ("how", "number", "code"),
    [
        ("imports", signal.SIGINT, 130),
        ("command", signal.SIGINT, 130),
        ("busy", signal.SIGINT, 130),
        ("busy", signal.SIGTERM, 75),
    ],
)
def test_an_interrupt_is_answered_in_one_sentence(how, number, code):
    modules = {"imports": ["-m", "anysat_jax.main"], "command": ["-m", "anysat_jax", "train"]}
    arguments = modules.get(how, ["-c", BUSY.format(LONG_CALL)])
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        if how == "busy":
            process.stdout.readline()
            time.sleep(0.5)
        else:  # until imports are under way
            while "jaxlib" not in pathlib.Path(f"/proc/{process.pid}/maps").read_text():
                time.sleep(0.01)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == code and error.startswith("anysat_jax: interrupted; ") and error.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [((), 130), ((signal.SIGINT,), 130), ((signal.SIGTERM,), 75)])
def test_an_interrupted_job_ends_in_one_sentence(monkeypatch, capsys, number, code):
    def interrupted(config):
        raise KeyboardInterrupt(*number)

    monkeypatch.setattr(main, "run_job", interrupted)
    monkeypatch.setattr(main, "end_soon_on_interrupt", lambda: None)
    monkeypatch.setattr(main, "_CONFIG", SimpleNamespace(value=1))
    monkeypatch.setattr(main, "_PROCESSES", SimpleNamespace(value=""))
    assert main.main([]) == code and capsys.readouterr().err == f"anysat_jax: {INTERRUPTED}\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.dmi", r"no value 'model.dmi' .*did you mean model.dim"),
        ("learning_rate", r"did you mean optimizer.learning_rate"),
        ("model", r"--config.model is a section; set one of its values: model.depth"),
        ("data.datasets.flair.weight", r"did you mean data.datasets.mini_flair.weight"),
        ("zzz", r"no value 'zzz' .*; it has: .*checkpoint_every"),
    ],
)
def test_a_mistyped_override_is_refused_by_name(name, message):
    with pytest.raises(ConfigError, match=message):
        main.check_overrides(["model.dim", name], pretrain.get_config())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config=nope.py"], r"there is no config file 'nope.py'"),
        ([f"{CONFIG}:huge"], r"has no 'huge'; it has mini"),
        ([CONFIG.replace("=", " ").split()[0], f"{CONFIG[9:]}:huge"], r"has no 'huge'"),
        (["--config.seed=1"], r"--config.seed needs a config"),
    ],
)
def test_a_wrong_config_is_refused(argv, message):
    with pytest.raises(ConfigError, match=message):
        main.parse(["main", *argv])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", r"mine.py does not define a get_config\(\) that returns a config \(SyntaxError: .*line 1"),
        ("", r"\(KeyError: 'get_config'\); mend it"),
        ("import nosuch", r"\(ModuleNotFoundError: No module named 'nosuch'\)"),
        ("get_config = int", r"that returns a config \(TypeError: "),
        ("get_config = dict", r"mine.py has no job, name, data.root, .*; start from one of configs/pretrain.py"),
        ("from anysat_jax.configs.pretrain import mini\nget_config = lambda: dict(mini(), mesh=3)", "no mesh; start"),
    ],
)
def test_a_config_file_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        main.parse(["main", f"--config={tmp_path / 'mine.py'}"])


def test_the_default_workdir_has_name_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.choose_workdir("some", "mini") == tmp_path / "some"
    assert main.choose_workdir(None, "mini").parent == tmp_path / "runs"
    assert main.choose_workdir(None, "mini").name.startswith("mini-20")


def test_several_processes_must_share_a_workdir(monkeypatch):
    monkeypatch.setattr(main.jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="2 processes must share a workdir: give --workdir"):
        main.choose_workdir(None, "mini")


def test_the_cache_of_programs_is_below_the_users_cache(tmp_path, monkeypatch):
    before = main.jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        main.jax.config.update("jax_compilation_cache_dir", None)
        main.keep_programs()
        folder = pathlib.Path(main.jax.config.jax_compilation_cache_dir)
        assert folder.parent == tmp_path / "anysat_jax" / "programs"
        main.jax.config.update("jax_compilation_cache_dir", "mine")
        main.keep_programs()
        assert main.jax.config.jax_compilation_cache_dir == "mine"
    finally:
        main.jax.config.update("jax_compilation_cache_dir", before)
