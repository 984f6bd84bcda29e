"""The pages have every number of the paper, and ours where something was run, and only there."""

import dataclasses
import html
import html.parser
import math
import pathlib
import re

import numpy as np
import pytest
from matplotlib import image

from anysat_jax.report import paper
from anysat_jax.report.__main__ import main
from anysat_jax.report.page import write_pretraining, write_results
from anysat_jax.report.tables import Score
from tests.report.fake_runs import CROPS, MOISTURE, TREES, scored, summary, toy_mosaic, write_run

ROW = "A/pastis_hd_semseg/finetune"


class Page(html.parser.HTMLParser):
    """The cells of a page's tables by caption, the paragraph before each, in rows; and the tags."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self._before, self._rows, self._text = {}, [], "", [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td", "p"):
            self._text = ""

    def handle_data(self, data):
        self._text += data

    def handle_endtag(self, tag):
        if tag == "p":
            self._before = self._text
        elif tag in ("th", "td"):
            self._rows[-1].append(self._text)
        elif tag == "table":
            self.tables[self._before] = [dict(zip(self._rows[0], row, strict=True)) for row in self._rows[1:]]


def markdown_tables(text):
    """The same of a markdown page."""
    tables = {}
    for caption, table in re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        lines = [line.strip("|").split("|") for line in table.splitlines()]
        rows = [[html.unescape(cell.strip().strip("*")) for cell in line] for line in lines]
        tables[html.unescape(caption)] = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    return tables


def pages(tmp_path, *folders):
    """The tables of both pages, and their texts."""
    path = write_results(folders, tmp_path / "out")
    assert path == tmp_path / "out" / "results.html"
    web, markdown = path.read_text(), (tmp_path / "out" / "results.md").read_text()
    return Page(web).tables, markdown_tables(markdown), web, markdown


def caption(block):
    return f"Table {block.table}: {block.heading}, in %"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Both pages of three repetitions of one of the paper's rows, and of a run of something else."""
    base = tmp_path_factory.mktemp("seeds")
    values = ((0.84, 0.60), (0.85, 0.62), (0.86, 0.64))
    folders = [
        write_run(base / f"crops{i}", summary(CROPS, row=ROW, seed=i, scores=scored(CROPS, accuracy=oa, mean_iou=miou)))
        for i, (oa, miou) in enumerate(values)
    ]
    neighbours = scored(MOISTURE, rmse=33.0)
    changes = dict(name="fuel_moisture", job="probe", mode="probe", fraction=0.1, knn=neighbours)
    folders.append(write_run(base / "fuel", summary(MOISTURE, **changes, scores=scored(MOISTURE, rmse=25.5, r2=-0.25))))
    return pages(base, *folders)


@pytest.mark.parametrize("page", [0, 1], ids=["html", "markdown"])
class TestBothPages:
    def test_every_row_and_number_of_the_paper_is_there(self, seeds, page):
        for block in paper.BLOCKS:
            rows = seeds[page][caption(block)]
            assert [row["Model"] for row in rows] == [row.model for row in block.rows]
            for shown, row in zip(rows, block.rows, strict=True):
                for metric, score in zip(block.metrics, row.scores, strict=True):
                    assert shown[f"{paper.METRIC_NAMES[metric]}, paper"] == ("-" if score is None else f"{score:.1f}")

    def test_ours_are_beside_their_row_and_nowhere_else(self, seeds, page):
        for block in paper.BLOCKS:
            for shown, row in zip(seeds[page][caption(block)], block.rows, strict=True):
                ours = [shown[f"{paper.METRIC_NAMES[metric]}, our number"] for metric in block.metrics]
                assert ours == (["85.0 ± 1.0", "62.0 ± 2.0"] if row.row == ROW else [""] * len(block.metrics))

    def test_where_our_number_comes_from(self, seeds, page):
        rows = seeds[page]["Table A: PASTIS-HD - semantic seg, in %"]
        names = ("Seeds", "Config", "Start", "Commit", "Date", "Seconds")
        found = ["0, 1, 2", "finetune: pastis_hd_semseg", "run geoplex", "012345678", "2026-11-22", "61"]
        assert [rows[0][name] for name in names] == found
        assert all(row[name] == "" for row in rows[1:] for name in names)

    def test_other_runs_have_a_table_of_their_own(self, seeds, page):
        probe, neighbours = seeds[page]["Fuel moisture, one answer a tile"]
        assert (probe["Run"], probe["Method"], probe["Labels (%)"]) == ("fuel", "linear probe", "10")
        assert (probe["RMSE (percent)"], probe["R²"]) == ("25.500", "-0.250")
        assert (neighbours["Method"], neighbours["RMSE (percent)"]) == ("nearest neighbours", "33.000")

    def test_no_path_of_the_machine(self, seeds, page):
        assert not re.search(r"/home|/tmp|somebody", seeds[page + 2])


def test_without_any_run_our_cells_are_empty(tmp_path):
    tables, markdown, web, _ = pages(tmp_path)
    for found in (tables, markdown):
        ours = {
            row[name] for rows in found.values() for row in rows for name in row if name.lower().endswith("our number")
        }
        assert ours == {""}
    assert "0 runs shown." in web


def test_a_row_with_two_experiments_is_listed_twice(tmp_path):
    folders = [
        write_run(tmp_path / name, summary(TREES, row="A/treesatai_ts/finetune", config={"epochs": epochs},
                  scores=scored(TREES, weighted_f1=score)), logs=False, panels=False)
        for name, epochs, score in (("short", 1, 0.6), ("long", 9, 0.7))
    ]  # fmt: skip
    tables, _, _, _ = pages(tmp_path, *folders)
    rows = tables["Table A: TSAI-TS - multilabel classif., in %"]
    assert [row["wF1, our number"] for row in rows[:3]] == ["60.0", "70.0", ""]
    assert [row["wF1, paper"] for row in rows[:3]] == ["75.1", "75.1", "72.7"]


def test_a_score_of_the_validation_split_says_so_and_a_missing_one_too(tmp_path):
    scores = {"val": {"accuracy": 0.9}}
    run = write_run(tmp_path / "run", summary(CROPS, row=ROW, scores=scores), logs=False, panels=False)
    row = pages(tmp_path, run)[0]["Table A: PASTIS-HD - semantic seg, in %"][0]
    assert (row["OA, our number"], row["mIoU, our number"]) == ("90.0 (val)", "not measured")


def test_made_up_tiles_are_not_beside_the_paper(tmp_path):
    content = summary(CROPS, row=ROW, config={"data": {"fake_tiles": 8}})
    tables, *_ = pages(tmp_path, write_run(tmp_path / "smoke", content, logs=False, panels=False))
    assert tables["Table A: PASTIS-HD - semantic seg, in %"][0]["mIoU, our number"] == ""
    assert tables["PASTIS-HD, one answer a pixel"][0]["Run"] == "smoke (synthetic tiles)"


def test_texts_of_a_run_are_no_markup(tmp_path):
    nasty = "<script>alert(1)</script> | **x** ![y](z) $\\frac$ \"'`"
    task = dataclasses.asdict(CROPS) | {"title": nasty, "classes": [nasty, "_", ""]}
    content = summary(CROPS, name=nasty, mode=nasty, init={"kind": nasty}) | {"task": task}
    content["provenance"] |= {"commit": "<b>", "date": "<i>"}
    folder = write_run(tmp_path / "<img src=x onerror=alert(1)>", content)
    _, tables, web, markdown = pages(tmp_path, folder)
    tags = Page(web).tags
    assert "script" not in [tag for tag, _ in tags]
    assert all(attributes["src"].startswith("figures/") for tag, attributes in tags if tag == "img")
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "<script" not in markdown and "<img src=x" not in markdown and "![y]" not in markdown
    assert len(tables) == len(paper.BLOCKS) + 2  # a pipe in a text would have broken the row of the other runs


def test_what_cannot_be_shown_is_named_and_the_rest_shown(tmp_path):
    good = write_run(tmp_path / "good", summary(TREES))
    bad = write_run(tmp_path / "bad", summary(CROPS))
    (bad / "panels.npz").write_bytes((bad / "panels.npz").read_bytes()[:-200])
    (bad / "metrics.csv").write_text("step,loss,learning_rate\n1,2,x\n")
    cut = write_run(tmp_path / "cut", summary(CROPS))
    (cut / "summary.json").write_text("{")
    _, _, web, markdown = pages(tmp_path, good, bad, cut, tmp_path / "gone")
    for page in (web, markdown):
        for file in ("bad/panels.npz", "bad/metrics.csv", "cut/summary.json", "gone/summary.json"):
            assert file in page
    assert "2 runs shown" in web
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert "01-good-panels.png" in figures and "02-bad-confusion.png" in figures
    assert "02-bad-panels.png" not in figures and "02-bad-curves.png" not in figures


def test_single_pixels_are_answers_in_a_table(tmp_path):
    folder = write_run(tmp_path / "fuel", summary(MOISTURE), panels=False)
    texts = np.array(["80 percent"])
    arrays = dict(sensors=np.array([], "U1"), ids=np.array(["a"]), extent=10.0, truth_text=texts, prediction_text=texts)
    np.savez(folder / "panels.npz", **arrays)
    tables, *_ = pages(tmp_path, folder)
    assert tables["A few tiles"] == [{"Tile": "a", "Prediction": "80 percent", "Ground truth": "80 percent"}]


def test_every_picture_is_a_file_with_words_in_its_place(seeds):
    images = [attributes for tag, attributes in Page(seeds[2]).tags if tag == "img"]
    assert [image["src"].rpartition("-")[2] for image in images] == [
        "figures/radar.png", "panels.png", "confusion.png", "curves.png", "panels.png", "curves.png",
    ]  # fmt: skip
    assert all(len(image["alt"]) > 40 and int(image["width"]) > 300 for image in images)
    assert all(f"]({image['src']})" in seeds[3] for image in images)


def test_the_command_says_where_the_page_is(tmp_path, capsys):
    run = write_run(tmp_path / "run", summary(TREES), logs=False, panels=False)
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    assert pathlib.Path(capsys.readouterr().out.strip()) == tmp_path / "out" / "results.html"
    (tmp_path / "file").write_text("")
    assert main([str(run), "--out", str(tmp_path / "file")]) == 1
    assert "cannot be written: " in capsys.readouterr().err


def test_the_command_names_what_it_cannot_show(tmp_path, capsys):
    run = write_run(tmp_path / "run", summary(TREES), logs=False, panels=False)
    (tmp_path / "file").write_text("")
    out = tmp_path / "out"
    assert main([str(tmp_path / "file"), str(tmp_path / "gone"), "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert [line.partition(" is ")[0] for line in said.err.splitlines()] == [
        "anysat_jax.report: file",
        "anysat_jax.report: gone/summary.json",
    ]
    assert not said.out and not out.exists()  # no page without any run
    assert main([str(run), str(tmp_path / "file"), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.err == "anysat_jax.report: file is a file: give the folder of a run (--workdir).\n"
    assert said.out.strip() == str(out / "results.html")


def test_scores_by_the_fraction_of_labels_are_shown(tmp_path):
    folders = [
        write_run(tmp_path / str(fraction), summary(CROPS, fraction=fraction), logs=False, panels=False)
        for fraction in (0.1, 1.0)
    ]
    web = pages(tmp_path, *folders)[2]
    assert re.search(r'<img src="figures/labels-01.png" alt="mIoU of PASTIS-HD', web)


def test_the_page_of_a_pretraining_shows_all_there_is(tmp_path):
    scores = [Score("Toy", "tile", "accuracy", 0.2, 0.4, True), Score("Toy", "dense", "mIoU", math.nan, 0.4, True)]
    rows = [f"{i},{'ab'[i % 2]},10,3,{1 / (i + 1)},2,0.1" for i in range(20)]
    header = "step,dataset,patch_size,loss,loss_predictive,loss_contrastive,learning_rate"
    (tmp_path / "metrics.csv").write_text("\n".join([header, *rows]))
    page = write_pretraining(tmp_path, "toy run", tmp_path / "metrics.csv", scores, [toy_mosaic()]).read_text()
    assert page.startswith("# toy run\n")
    for file in ("curves.png", "probes.png", "features_toy.png"):
        assert image.imread(tmp_path / file).std() > 0.05  # something is drawn
        assert f"]({file})" in page
    assert re.search(r"\| Toy +\| tile +\| accuracy +\| +\*\*20.0\*\* \| +\*\*40.0\*\* \| +\*\*\+20.0\*\* \|", page)


def test_a_pretraining_without_log_and_scores_says_so(tmp_path):
    page = write_pretraining(tmp_path, "toy run", tmp_path / "metrics.csv", [], [])
    assert "Nothing was probed." in page.read_text() and list(tmp_path.iterdir()) == [page]
