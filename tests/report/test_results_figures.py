"""The figures of the results page, and what they are drawn from."""

import dataclasses
import math
import re

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from anysat_jax.downstream.task import Task
from anysat_jax.report import figures as radar
from anysat_jax.report import paper
from anysat_jax.report.curves import _draw_loss, draw_fit_curves, read_fit_log
from anysat_jax.report.figures import draw_confusion, draw_label_curves, label_lines, label_shares, row_shares
from anysat_jax.report.maps import class_colours, draw_panels, paint, read_panels, value_range
from anysat_jax.report.page import write_results
from anysat_jax.report.runs import BrokenRun, by_row, group_runs, read_runs
from tests.report.fake_runs import BIOMASS, CROPS, TREES, panel_arrays, scored, summary, write_run


def run_of(tmp_path, content, **parts):
    [run], problems = read_runs([write_run(tmp_path / "run", content, **parts)])
    assert not problems
    return run


class TestRadar:
    def test_an_axis_for_each_task_and_no_score_of_ours_where_nothing_was_run(self, tmp_path):
        row, scores = "B/sickle/finetune", scored(CROPS, mean_iou=0.8)
        values = radar.radar_values(by_row(group_runs([run_of(tmp_path, summary(CROPS, row=row, scores=scores))])))
        names = [block.heading for block in paper.BLOCKS]
        assert {len(column) for column in values.values()} == {len(names)}
        ours = dict(zip(names, values["ours"], strict=True))
        assert ours.pop("SICKLE") == 80.0 and all(map(math.isnan, ours.values()))

    def test_the_papers_lines(self):
        values = radar.radar_values({})
        columns = zip(values["AnySat, paper"], values["best other, paper"], strict=True)
        found = dict(zip((block.heading for block in paper.BLOCKS), columns, strict=True))
        assert found["PASTIS-HD - semantic seg"] == (66.5, 66.3)  # mIoU, which SkySense does not report
        assert found["SICKLE"] == (89.3, 82.1) and found["FLAIR - semantic seg"] == (55.1, 56.9)

    @pytest.mark.parametrize("ours", [math.nan, 99.0, 3.0])
    def test_it_is_drawn_whatever_ours_are(self, tmp_path, ours):
        values = radar.radar_values({}) | {"ours": [ours] * len(paper.BLOCKS)}
        radar.draw_radar(tmp_path / "radar.png", values)
        assert has_colour(tmp_path / "radar.png", "#d1495b") == math.isfinite(ours)


class TestConfusion:
    def test_rows_sum_to_one_and_a_row_without_counts_is_unknown(self):
        shares = row_shares(np.array([[3, 1], [0, 0]]))
        np.testing.assert_array_equal(shares, [[0.75, 0.25], [np.nan, np.nan]])

    def test_outcomes_of_labels(self):
        counts = np.array([[[80, 20], [3, 7]]])  # [[true negatives, false alarms], [misses, hits]]
        np.testing.assert_allclose(label_shares(counts), [[0.7, 0.3, 0.2, 0.8]])

    @pytest.mark.parametrize("classes", [2, 40])
    def test_cells_stay_large_enough_to_be_read(self, tmp_path, classes):
        draw_confusion(tmp_path / "c.png", "Title", [f"class {i}" for i in range(classes)], np.eye(classes, dtype=int))
        assert image.imread(tmp_path / "c.png").shape[0] > 45 * classes
        assert has_colour(tmp_path / "c.png", "#08306b")  # 100 % of a row


class TestPanels:
    def test_what_is_read(self, tmp_path):
        panels = read_panels(run_of(tmp_path, summary(CROPS)))
        assert list(panels.inputs) == ["s2", "s1"] and panels.ids == ["tile_0", "tile_1"] and panels.extent == 160
        assert panels.truth.shape == panels.prediction.shape == (2, 16, 16)

    def test_no_file_and_no_tiles_are_no_panels(self, tmp_path):
        run = run_of(tmp_path, summary(CROPS), panels=False)
        assert read_panels(run) is None
        np.savez(run.folder / "panels.npz", **panel_arrays(CROPS, tiles=0))
        assert read_panels(run) is None

    def test_void_is_white_and_classes_have_their_official_colours(self):
        painted = 255 * paint(CROPS, np.array([[-1, 0], [2, 255]]))
        np.testing.assert_allclose(painted, [[[255] * 3, [0xA0, 0xDB, 0x8E]], [[0xE0, 0x52, 0x2F], [255] * 3]])

    def test_classes_without_official_colours_get_some(self):
        colours = class_colours(Task("x", "X", "dense", "class", ("a", "b", "c"), ("red", "nonsense", "#12")))
        assert len(set(colours)) == 3

    @pytest.mark.parametrize(("task", "colour"), [(CROPS, "#c7b12b"), (BIOMASS, "#fde725")], ids=["classes", "numbers"])
    def test_maps_are_drawn(self, tmp_path, task, colour):
        run = run_of(tmp_path, summary(task))
        draw_panels(tmp_path / "p.png", "Title", run.task, read_panels(run))
        assert has_colour(tmp_path / "p.png", colour)

    def test_answers_of_tiles_are_written(self, tmp_path):
        run = run_of(tmp_path, summary(TREES))
        panels = read_panels(run)
        wordless = dataclasses.replace(panels, prediction=np.array(["", ""]))
        for name, one in (("words", panels), ("none", wordless)):
            draw_panels(tmp_path / f"{name}.png", "Title", run.task, one)
        words, none = (image.imread(tmp_path / f"{name}.png") for name in ("words", "none"))
        assert (words < none).any() and not (words > none).any()  # dark on white

    def test_the_colour_bar_leaves_out_what_is_unknown(self, tmp_path):
        panels = read_panels(run_of(tmp_path, summary(BIOMASS)))
        low, high = value_range(panels)
        assert 0 <= low < 10 and 190 < high <= 200
        empty = np.full((2, 4, 4), np.nan, np.float32)
        assert value_range(dataclasses.replace(panels, truth=empty, prediction=empty)) == (0, 1)

    @pytest.mark.parametrize(
        "changes",
        [
            {"truth": None},
            {"sensors": None},
            {"sensors": np.array(["s2", "s1", "l8"])},
            {"truth": np.zeros((2, 16, 16), np.float32)},
            {"prediction": np.zeros((2, 16), np.int32)},
            {"input_0": np.zeros((2, 16, 16, 3))},
            {"input_1": np.zeros((1, 16, 16, 3), np.uint8)},
            {"ids": np.array([{"code": "to run"}], object)},
            {"ids": np.array("one")},
        ],
    )
    def test_a_wrong_array_is_a_sentence(self, tmp_path, changes):
        run = run_of(tmp_path, summary(CROPS))
        arrays = {name: array for name, array in (panel_arrays(CROPS) | changes).items() if array is not None}
        np.savez(run.folder / "panels.npz", **arrays)
        with pytest.raises(BrokenRun, match=r"^run/panels\.npz cannot be shown: .*\.$"):
            read_panels(run)

    def test_flipped_bits_are_a_sentence_or_do_not_matter(self, tmp_path):
        run = run_of(tmp_path, summary(CROPS))
        path, rng = run.folder / "panels.npz", np.random.default_rng(0)
        whole = path.read_bytes()
        broken = 0
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 8):
                damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(damaged))
            try:
                read_panels(run)
            except BrokenRun:
                broken += 1
        assert broken


class TestCurves:
    def test_what_is_read(self, tmp_path):
        log = read_fit_log(run_of(tmp_path, summary(CROPS)))
        assert (log.steps[-1], log.loss[0], log.rate[0], log.best) == (30, 1.5, 1e-4, 2)
        np.testing.assert_array_equal(log.values, [0.4, 0.6, 0.55])
        assert log.in_words == "seed 0, best 0.600 at epoch 2"

    def test_a_run_without_a_log_has_no_curves(self, tmp_path):
        assert read_fit_log(run_of(tmp_path, summary(CROPS, job="evaluate"), logs=False)) is None

    def test_a_fit_that_was_never_evaluated_has_no_best_epoch(self, tmp_path):
        run = run_of(tmp_path, summary(CROPS))
        (run.folder / "evaluation.csv").unlink()
        log = read_fit_log(run)
        assert log.in_words == "seed 0"
        draw_fit_curves(tmp_path / "c.png", "Title", "mIoU", [log])
        assert not has_colour(tmp_path / "c.png", "#d1495b")

    def test_the_best_epoch_has_a_ring(self, tmp_path):
        draw_fit_curves(tmp_path / "c.png", "Title", "mIoU", [read_fit_log(run_of(tmp_path, summary(CROPS)))])
        assert has_colour(tmp_path / "c.png", "#d1495b")

    def test_a_value_that_is_not_there_is_a_gap(self, tmp_path):
        run = run_of(tmp_path, summary(CROPS))
        (run.folder / "metrics.csv").write_text("step,loss,learning_rate\n1,,0.1\n2,inf,0.1\n3,0.5,0.1\n")
        log = read_fit_log(run)
        assert math.isnan(log.loss[0])
        draw_fit_curves(tmp_path / "c.png", "Title", "mIoU", [log])

    @pytest.mark.parametrize("steps", [1, 2, 19, 40])
    def test_short_logs_are_drawn_as_they_are(self, tmp_path, steps):
        """The smoothed line stays between the lowest and the highest loss, also where few steps lie far apart."""
        log = dataclasses.replace(
            read_fit_log(run_of(tmp_path, summary(CROPS))),
            **{name: np.arange(0, 100 * steps, 100.0) for name in ("steps", "rate")},
            loss=np.full(steps, 3.0),
        )
        figure = Figure()
        _draw_loss(figure.subplots(), log, "#1b6ca8")
        for line in figure.axes[0].lines:
            np.testing.assert_allclose(line.get_ydata(), 3.0)

    @pytest.mark.parametrize(
        ("text", "words"),
        [("step,loss\n1,2\n", "has no column 'learning_rate'"), ("step,loss,learning_rate\n1,x,2\n", "cannot be read")],
    )
    def test_a_broken_log_is_a_sentence(self, tmp_path, text, words):
        run = run_of(tmp_path, summary(CROPS))
        (run.folder / "metrics.csv").write_text(text)
        with pytest.raises(BrokenRun, match=f"^run/metrics.csv {words}"):
            read_fit_log(run)


class TestLabelCurves:
    def groups(self, tmp_path):
        contents = [
            summary(CROPS, seed=seed, fraction=fraction, mode=mode, scores=scored(CROPS, mean_iou=score + 0.01 * seed))
            for mode, scores in (("finetune", (0.4, 0.5, 0.6)), ("scratch", (0.1, 0.3, 0.6)))
            for fraction, score in zip((0.01, 0.1, 1.0), scores, strict=True)
            for seed in (0, 1)
        ]
        contents += [summary(CROPS, mode="probe", fraction=0.1), summary(CROPS, job="evaluate", fraction=0.5)]
        folders = [write_run(tmp_path / str(i), one, logs=False, panels=False) for i, one in enumerate(contents)]
        return group_runs(read_runs(folders)[0])

    def test_a_line_for_each_method_with_several_shares(self, tmp_path):
        lines = label_lines(self.groups(tmp_path))
        assert list(lines) == ["fine-tuned, start: run", "trained from scratch, start: run"]
        spread = 0.01 / math.sqrt(2)
        np.testing.assert_allclose(
            lines["fine-tuned, start: run"], [(f, s, spread) for f, s in ((0.01, 0.405), (0.1, 0.505), (1, 0.605))]
        )

    def test_they_are_drawn(self, tmp_path):
        draw_label_curves(tmp_path / "l.png", "Title", "mIoU", label_lines(self.groups(tmp_path)))
        assert all(has_colour(tmp_path / "l.png", colour) for colour in ("#1b6ca8", "#e07a1f"))

    def test_the_page_shows_them(self, tmp_path):
        self.groups(tmp_path)
        page = write_results(sorted(tmp_path.iterdir()), tmp_path / "out")
        assert re.search(r'<img src="figures/labels-01.png" alt="mIoU of PASTIS-HD', page.read_text())


def has_colour(path, colour):
    """Whether a picture has pixels of a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(image.imread(path)[..., :3] - wanted).max(axis=-1) < 0.02).sum() > 10)
