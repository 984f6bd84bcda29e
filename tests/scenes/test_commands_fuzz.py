"""Random requests of `anysat embed`: each ends in a whole result in its place, or in one sentence and no output."""

import contextlib
import io
import pathlib
import tempfile

import numpy as np
import pytest
import rasterio.warp
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine

from anysat_jax.scenes import cli, read_encoded
from tests.scenes.fake_scenes import LEFT, TOP, fake_values, model, save_model
from tests.scenes.rasters import write

PATCH, HERE = 20, "EPSG:32632"
PIXELS = {HERE: 10.0, "EPSG:32631": 10.0, "EPSG:3857": 15.0, "EPSG:4326": 1e-4, "EPSG:2154": 10.0}
NAMES = ("20210110", "20210410", "20210410b", "winter")
# Rarely drawn: what is refused in most cases, so that the others are not.
ODD = {
    "--patch-size": ("0", "-20", "nan", "15", "1e6"),
    "--resolution": ("0", "15", "-10", "nan"),
    "--tile": ("130", "0", "-160"),
    "--components": ("0", "33", "-1"),
    "--crs": ("EPSG:4326", "EPSG:3857", "nonsense", "", "EPSG:32633"),
    "--bounds": ("9,48,9.1,48.1", "0,0,1e9,1e9", "nan,0,1,2", "-inf,-inf,inf,inf", "500100,5399900,500105,5399905"),
    "--batch": ("0", "-1"),
    "--devices": ("0", "-1", "10000"),
    "--normalise": ("nowhere", "/nowhere.json"),
    "--output-modality": ("s1", "s2"),
    "--output": ("emb.png", "nowhere/emb.tif", "folder.tif", "text.tif", "emb"),
}
odd = st.one_of(*(st.tuples(st.just(flag), st.sampled_from(values)) for flag, values in ODD.items()))
requests = st.fixed_dictionaries(
    dict(
        crs=st.sampled_from([HERE] * 4 + [*PIXELS, "two"]),
        shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
        shift=st.sampled_from(((0, 0), (0, 0), (130, -70), (3.3, -7.1))),  # metres
        hidden=st.sampled_from(("nothing", "zeros", "nan", "inf", "-9999", "all")),
        names=st.lists(st.sampled_from(NAMES[:3] * 5 + NAMES), min_size=1, max_size=2, unique=True),
        cut=st.sampled_from((False,) * 12 + (True,)),  # whether a file is only half there
        flags=st.lists(
            st.sampled_from(("--dtype=int8", "--dtype=float16", "--components=3", "--pca", "--quicklook",
                             "--bounds=499990,5399860,500120,5400040")), max_size=3, unique_by=lambda one: one[:5]
        ),
        output=st.sampled_from(("emb.tif", "emb.tif", "ö ü.tif", "emb.zarr")),
        odd=st.none() | st.none() | odd,
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("weights") / "tiny.safetensors", model("s2"))


def write_dates(folder, case):
    """Writes a file for each date, and returns where any date is valid."""
    rows, columns = case["shape"]
    seen = np.zeros((rows, columns), bool)
    for number, name in enumerate(case["names"]):
        values, gone = fake_values(10, rows, columns, number).astype(np.float32), np.zeros((rows, columns), bool)
        if case["hidden"] != "nothing":
            gone[:, slice(None) if case["hidden"] == "all" else slice(columns // 2 + number, None)] = True
        stored = {"nan": np.nan, "inf": np.inf, "-9999": -9999}.get(case["hidden"], 0)
        values[slice(1) if case["hidden"] in ("nan", "inf") else slice(None), gone] = stored  # one band is enough
        crs = (HERE, "EPSG:32631")[number] if case["crs"] == "two" else case["crs"]
        x, y = LEFT + case["shift"][0], TOP + case["shift"][1]
        (x,), (y,) = ([x], [y]) if crs == HERE else rasterio.warp.transform(HERE, crs, [x], [y])
        facts = {"nodata": stored} if case["hidden"] in ("zeros", "all", "-9999") else {}
        write(folder / f"s2 {name}.tif", values, Affine(PIXELS[crs], 0, x, 0, -PIXELS[crs], y), crs, **facts)
        seen |= ~gone
    if case["cut"]:
        path = folder / f"s2 {case['names'][-1]}.tif"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return seen


def check_result(case, path, seen):
    """Compares a result's place and its valid pixels with those of the rasters."""
    features, place, _ = read_encoded(path)
    valid = np.isfinite(features[0])
    assert (np.isfinite(features) == valid).all() and valid.any()
    assert (place.a, place.e) == (PATCH, -PATCH)
    if case["crs"] == HERE and not any("crs" in word for word in case["odd"] or ()) and case["hidden"] != "all":
        expected = np.zeros(valid.shape, bool)
        rows, columns = np.nonzero(seen)
        # The corners of each pixel, a little inside: patches that they touch have features.
        for down, right in ((0.001, 0.001), (0.001, 9.999), (9.999, 0.001), (9.999, 9.999)):
            x, y = LEFT + case["shift"][0] + 10 * columns + right, TOP + case["shift"][1] - 10 * rows - down
            at = np.floor((place.f - y) / PATCH).astype(int), np.floor((x - place.c) / PATCH).astype(int)
            inside = [(one >= 0) & (one < side) for one, side in zip(at, valid.shape)]
            expected[tuple(one[inside[0] & inside[1]] for one in at)] = True
            assert any("bounds" in flag for flag in case["flags"]) or (inside[0] & inside[1]).all()  # edges are whole
        if case["shift"] != (3.3, -7.1):  # else pixels are interpolated next to the origin
            np.testing.assert_array_equal(valid, expected)


def check_request(weights, case):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "folder.tif").mkdir()
        (folder / "text.tif").write_text("mine")
        before = {path.name for path in folder.iterdir()}
        seen = write_dates(folder / "in put", case)
        given = {"--patch-size": PATCH, "--resolution": PATCH, "--tile": 160, "--batch": 2, "--output": case["output"]}
        given |= dict([case["odd"]] if case["odd"] else [])
        output = folder / given.pop("--output")
        words = [f"--s2={folder / 'in put'}", f"--weights={weights}", f"--output={output}", *case["flags"]]
        words += [f"{flag}={value}" for flag, value in given.items()]
        errors, printed = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(printed):
            code = cli.main("embed", words)
        made = {path.name for path in folder.iterdir()} - before - {"in put"}
        lines = errors.getvalue().strip().splitlines()
        assert (folder / "text.tif").read_text() == "mine"
        assert not any("Warning" in line or "Traceback" in line for line in lines), lines
        event(lines[-1].split(": ", 1)[-1].replace(name, "")[:50] if code else "result")
        if code == 0:
            stem = output.stem
            pictures = {f"{stem}.png"} if "--quicklook" in case["flags"] else set()
            assert made == {output.name, f"{stem}_input.tif", f"{stem}.stac.json"} | pictures
            check_result(case, output, seen)
        else:
            assert code == 1 and lines[-1].startswith("anysat embed: ") and len(lines[-1]) > 40
            assert made <= {f"{output.name}.parts"} and not printed.getvalue()


@pytest.mark.parametrize("cases", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_each_request_ends_in_a_result_or_a_sentence(weights, cases):
    ask = given(requests)(lambda case: check_request(weights, case))
    settings(max_examples=cases, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))(ask)()
