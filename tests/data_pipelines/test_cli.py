"""The command line: what it prints, what it writes, how it fails."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from anysat_jax.sensors import get_sensor
from data_pipelines import cli
from data_pipelines.cli import main
from data_pipelines.fakes import write_fake
from data_pipelines.registry import ARCHIVE_NAMES, GEOPLEX_NAMES, MINI_NAMES, dataset_names, get_entry

DATASET = "timesen2crop"  # the quickest to write
ESCAPE = "\x1b"
COMMANDS = ("list", "show", "prepare", "statistics", "look", "fake")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive") / DATASET
    write_fake(DATASET, folder, tiles=2)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working folder, and a terminal of known width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    return tmp_path


def output(capsys, *words):
    assert main(words) == 0
    return capsys.readouterr().out


def error(capsys, *words):
    """The one line that a failed command prints."""
    assert main(words) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines)
    return lines[-1]


def python(*words):
    """An interpreter of its own."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=REPOSITORY)


# list


def test_the_list_has_every_dataset(capsys):
    shown = output(capsys, "list")
    assert [line.split()[0] for line in shown.splitlines() if line[:1].isalpha()][1:] == list(dataset_names())
    assert set(MINI_NAMES) | set(ARCHIVE_NAMES) == set(dataset_names())


@pytest.mark.parametrize("width", [120, 140, 170])
def test_the_list_fits_the_terminal(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert max(map(len, output(capsys, "list").splitlines())) <= width


def test_datasets_are_listed_without_the_packages_that_read_them():
    heavy = ("jax", "rasterio", "h5py", "torch", "matplotlib", "PIL", "tensorflow_datasets", "grain")
    code = "import sys; from data_pipelines.cli import main; main(['list']); print(sys.modules.keys() & {})"
    shown = python("-c", code.format(set(heavy))).stdout
    assert shown.splitlines()[-1] == "set()"


# show


@pytest.mark.parametrize("name", [*MINI_NAMES, *ARCHIVE_NAMES])
def test_a_card_is_shown_whole(capsys, name):
    card, shown = get_entry(name).card, output(capsys, "show", name)
    squeezed = " ".join(shown.split())
    for fact in (*card.notes, *card.tile_classes, *card.dense_classes, card.licence, card.url, card.citation):
        assert " ".join(fact.split()) in squeezed
    assert all(f"Sensor {sensor}" in shown for sensor in card.sensors)
    assert all(colour in shown for colour in card.dense_colours)
    assert max(map(len, shown.splitlines())) <= 140 and ESCAPE not in shown


def test_bands_are_shown_in_both_orders(capsys):
    shown = output(capsys, "show", "treesatai_ts")
    assert re.search(r"bands: +R G B NIR\n +in the files: +NIR G B R\n", shown)
    assert "304 x 304 of 0.2 m, of which batches take the 300 x 300 in the centre" in shown


def test_classes_carry_squares_of_their_colours_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(cli.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    red, green, blue = (int(get_entry("sen1floods11").card.dense_colours[1][i : i + 2], 16) for i in (1, 3, 5))
    assert f"{ESCAPE}[48;2;{red};{green};{blue}m" in output(capsys, "show", "sen1floods11")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_declined(capsys, monkeypatch, name, value):
    monkeypatch.setattr(cli.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    assert ESCAPE not in output(capsys, "show", "sen1floods11")


def test_generated_data_need_no_download(capsys):
    assert "nothing to download" in output(capsys, "show", "mini_flair")


# fake


def test_a_made_up_archive_is_written_and_looked_at(capsys):
    shown = output(capsys, "fake", DATASET, "--out", "fakes/one", "--tiles", "1")
    (command,) = re.findall(r"  python -m data_pipelines (look .*)", shown)
    assert "1 of 1 tiles of 'train'" in output(capsys, *command.split())
    assert pathlib.Path("pictures/index.html").is_file()
    assert len(list(pathlib.Path("pictures").glob("train_*.png"))) == 1


def test_an_archive_is_made_up_in_the_layout_that_its_address_hands_out(capsys):
    output(capsys, "fake", "hls_burn_scars", "--out", "x", "--tiles", "1", "--layout", "download")
    assert pathlib.Path("x/splits/val.txt").is_file() and not pathlib.Path("x/training").exists()


def test_geoplex_is_five_archives(capsys, monkeypatch):
    written = []
    monkeypatch.setattr("data_pipelines.cli.write_fake", lambda name, folder, *_: written.append((name, str(folder))))
    output(capsys, "fake", "geoplex", "--out", "all")
    assert written == [(name, f"all/{name}") for name in GEOPLEX_NAMES]


def test_nothing_is_written_over(capsys, archive):
    before = sorted(path.name for path in archive.iterdir())
    message = error(capsys, "fake", DATASET, "--out", str(archive))
    assert message.endswith("is there already and not an empty folder; choose a new one as --out")
    assert sorted(path.name for path in archive.iterdir()) == before


@pytest.mark.parametrize("words", [("--tiles", "0"), ("--seed", "-1")])
def test_impossible_archives(capsys, words):
    assert "expected at least 1 tile and seed 0" in error(capsys, "fake", DATASET, "--out", "x", *words)
    assert not pathlib.Path("x").exists()


# prepare


def test_preparing_says_what_was_found_and_what_to_do_next(capsys, archive):
    shown = output(capsys, "prepare", DATASET, "--source", str(archive), "--out", "prepared", "--limit", "1")
    assert f"{DATASET} is prepared in prepared/{DATASET}/" in shown
    assert "ONLY the first 1 tile of each split" in shown and re.search(r"train +\| +1 \| +0 \|", shown)
    (command,) = re.findall(r"  python -m data_pipelines (look .*)", shown)
    assert "1 of 1 tiles of 'train'" in output(capsys, *command.split())


def test_what_to_type_next_can_be_typed(capsys):
    shown = output(capsys, "fake", DATASET, "--out", "my fakes")
    assert "--source 'my fakes' --out" in shown
    assert "--root 'my data' --out" in output(capsys, "prepare", DATASET, "--source", "my fakes", "--out", "my data")


def test_an_interrupted_preparation_says_how_to_go_on(capsys, archive, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_pipelines.prepare.prepare.write_shard", interrupt)
    assert main(("prepare", DATASET, "--source", str(archive), "--out", "prepared")) == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err.endswith(
        "finished shards are kept; the same command continues with the next one\ninterrupted\n"
    )


def test_preparing_twice_changes_nothing(capsys, archive):
    words = ("prepare", DATASET, "--source", str(archive), "--out", "prepared")
    output(capsys, *words)
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path("prepared").rglob("*")}
    again = output(capsys, *words)
    assert "is prepared in" in again and "nothing to do: it was prepared before" in again and "| train " in again
    assert {path: path.stat().st_mtime_ns for path in pathlib.Path("prepared").rglob("*")} == before


def test_a_bad_tile_stops_and_names_its_file_or_is_skipped_and_listed(capsys, tmp_path):
    write_fake(DATASET, tmp_path / "raw", tiles=2)
    reader = get_entry(DATASET).open_reader(tmp_path / "raw")
    bad = tmp_path / "raw" / f"{reader.keys('train')[0]}.csv"
    bad.write_text("B2,B3\n1,2\n")
    words = ("prepare", DATASET, "--source", str(tmp_path / "raw"), "--out", "prepared")
    message = error(capsys, *words)
    assert str(bad) in message and "--skip-bad" in message
    shown = output(capsys, *words, "--skip-bad")
    assert re.search(r"train +\| +1 \| +1 \|", shown) and str(bad) in shown


# look


def test_prepared_tiles_are_looked_at(capsys, archive):
    output(capsys, "prepare", DATASET, "--source", str(archive), "--out", "prepared")
    assert "2 of 2 tiles of 'val'" in output(
        capsys, "look", DATASET, "--root", "prepared", "--split", "val", "--n", "5", "--out", "pictures"
    )


def test_statistics_of_raw_and_of_prepared_data_are_the_same(capsys, archive, here):
    raw = json.loads(output(capsys, "statistics", DATASET, "--source", str(archive)))
    output(capsys, "prepare", DATASET, "--source", str(archive), "--out", "prepared")
    shown = output(capsys, "statistics", f"prepared/{DATASET}", "--out", "statistics.json")
    assert "statistics of s2 are in statistics.json" in shown and "normalise='statistics.json'" in shown
    found = json.loads((here / "statistics.json").read_text())
    assert found["s2"]["bands"] == raw["s2"]["bands"] == list(get_sensor("s2").bands)
    for key in ("mean", "std"):
        np.testing.assert_allclose(found["s2"][key], raw["s2"][key])


def test_generated_data_are_looked_at_without_a_source(capsys):
    assert "1 of 128 tiles of 'train'" in output(capsys, "look", "mini_flair", "--n", "1", "--out", "pictures")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("look", "treesat", "--out", "x"), "unknown dataset 'treesat'; known datasets: mini_treesatai_ts"),
        (
            ("look", DATASET, "--out", "x"),
            f"{DATASET} is read from a download: give its folder as --source DIR; get it",
        ),
        (("look", DATASET, "--source", "no", "--out", "x"), "no is not a folder; expected that of the download"),
        (("look", DATASET, "--source", ".", "--out", "x"), f"does not hold {DATASET} as it is published; expected"),
        (("look", "mini_flair", "--source", ".", "--out", "x"), "leave out --source"),
        (("look", "mini_flair", "--n", "0", "--out", "x"), "--n is 0; expected at least one tile"),
        (("look", "mini_flair", "--split", "test", "--out", "x"), "no tiles of split 'test'; there are train, val"),
        (("look", DATASET, "--root", ".", "--out", "x"), f"{DATASET} is not prepared in "),
        (("show", "none.toml"), "none.toml"),
        (("statistics", "."), ". holds neither statistics.json of one prepared dataset, nor one descr"),
        (("prepare", DATASET, "--out", "x"), f"{DATASET} is read from a download"),
        (("fake", DATASET, "--layout", "download", "--out", "x"), f"{DATASET} has no layout 'download'; leave it out"),
        (("fake", "geoplex", "--layout", "download", "--out", "x"), "--layout is download; geoplex takes none"),
        (("look", "mini_flair", "--out", __file__), f"{__file__} is a file, and a folder is needed there"),
        (
            ("prepare", "mini_flair", "--out", __file__),
            "test_cli.py is a file, and a folder is needed there; choose a folder",
        ),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(capsys, words, message):
    assert message in error(capsys, *words)
    assert not pathlib.Path("x").exists()


def test_keys_of_a_description_are_printed_without_control_characters(here, capsys):
    (here / "a.toml").write_text('"name\\u001b[31m" = "a"')
    assert r"a.toml" in (line := error(capsys, "show", "a.toml")) and r"name\x1b[31m" in line and line.isprintable()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prepare", DATASET, "--source", "x", "--out", ""), "argument --out: it is empty; perhaps a shell variable"),
        (("prepare", DATASET, "--source", "", "--out", "x"), "argument --source: it is empty; perhaps a shell"),
        (("prepare", DATASET, "--source", "gs://a/b", "--out", "x"), "--source: gs://a/b is an address; expected a"),
        (("look", "mini_flair", "--out", "gs://a/b"), "--out: gs://a/b is an address; expected a folder of this"),
        (("fake", DATASET, "--out", " "), "argument --out: it is empty"),
        (("prepare", DATASET, "--source", "caf\udce9", "--out", "x"), r"--source: 'caf\udce9' is not UTF-8"),
    ],
)
def test_places_that_cannot_be_are_wrong_usage(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err
    assert list(pathlib.Path().iterdir()) == []


def test_a_terminal_without_accents_shows_all_the_rest():
    """The names of authors have some."""
    words = [sys.executable, "-m", "data_pipelines", "show", "planted"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0 and "Pazos-Out?n" in done.stdout, done.stderr


def test_errors_of_the_system_come_without_their_number(capsys, monkeypatch):
    def fail(arguments):
        raise PermissionError(13, "Permission denied", "a/b.tif")

    monkeypatch.setattr(cli, "list_datasets", fail)
    assert error(capsys, "list") == "error: Permission denied: a/b.tif"


def test_the_source_may_hold_the_archive_under_its_name(capsys, archive):
    words = ("look", DATASET, "--source", str(archive.parent), "--n", "1", "--out", "pictures")
    assert "1 of 2 tiles" in output(capsys, *words)


def test_a_missing_package_is_one_line(capsys, monkeypatch):
    def fail(arguments):
        raise ImportError("reading a.tif needs rasterio: pip install -e '.[data]'")

    monkeypatch.setattr(cli, "list_datasets", fail)
    assert error(capsys, "list") == "error: reading a.tif needs rasterio: pip install -e '.[data]'"


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(arguments):
        raise KeyError("a mistake in the code")

    monkeypatch.setattr(cli, "list_datasets", fail)
    with pytest.raises(KeyError):
        main(["list"])


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def stop(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "list_datasets", stop)
    assert main(["list"]) == cli.EXIT_INTERRUPTED and capsys.readouterr().err == "interrupted\n"


# usage and help


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("polish",),
        ("show",),
        ("look", "mini_flair"),
        ("fake", "mini_flair", "--out", "x"),
        ("look", "a", "--n", "b"),
        ("look", "mini_flair", "--out", "x", "--source", "a", "--root", "b"),
    ],
)
def test_wrong_usage_exits_with_2(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and "usage: python -m data_pipelines" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_examples(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    shown = capsys.readouterr().out
    examples = re.findall(r"^  python -m data_pipelines (\w.*?)(?:   .*)?$", shown, re.MULTILINE)
    assert stop.value.code == 0 and examples
    parser = cli.make_parser()
    for example in examples:
        parser.parse_args(example.split())  # exits where an example is not valid


def test_the_general_help_shows_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    examples = re.findall(r"^  python -m data_pipelines (\w.*?)(?:   .*)?$", shown, re.MULTILINE)
    assert {example.split()[0] for example in examples} == set(COMMANDS)
    for example in examples:
        cli.make_parser().parse_args(example.split())


def test_the_module_runs():
    done = python("-m", "data_pipelines", "show", "nothing")
    assert done.returncode == 1 and done.stderr.startswith("error: unknown dataset") and not done.stdout
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m data_pipelines show pastis_hd | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout == "PASTIS-HD (pastis_hd)\n" and not done.stderr


# text
