"""Raw files: whatever is wrong with one, the error names it, says what was expected and what to do."""

import json
import pickle
import sys

import h5py
import numpy as np
import pytest
import rasterio

from data_pipelines import files

EXPECTED = "what there should be"


def write_raster(path, values, **profile):
    shape = dict(count=len(values), height=values.shape[1], width=values.shape[2], dtype=values.dtype)
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as file:
        file.write(values)


def test_names_stay_inside(tmp_path):
    assert files.inside(tmp_path, "a/b.tif") == tmp_path / "a" / "b.tif"


@pytest.mark.parametrize("name", ["../x.tif", "/etc/passwd", "a/../../x", "", " ", "a\0b"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="leads out of .*; the archive's metadata may only name files inside"):
        files.inside(tmp_path, name)


def test_links_that_lead_out_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=f"leads out of .*: a link leads to {tmp_path}/secret; copy the files in its"):
        files.inside(tmp_path / "in", "link/secret")
    assert files.inside(tmp_path / "in" / "link", "in/file").name == "file"


def test_stems_lie_between_prefix_and_suffix(tmp_path):
    for name in ("S2_1.npy", "S2_22.npy", "S1_1.npy", "S2_3.txt"):
        (tmp_path / name).touch()
    assert files.stems(tmp_path, ".npy", "S2_") == {"1", "22"} and files.stems(tmp_path / "none", ".npy") == set()


def test_files_that_macos_lays_beside_others_are_no_tiles(tmp_path):
    for name in ("S2_1.npy", "._S2_1.npy", ".DS_Store"):
        (tmp_path / name).touch()
    assert files.stems(tmp_path, ".npy") == {"S2_1"} and files.stems(tmp_path, "") == {"S2_1.npy"}


def test_texts_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.tif\r\nb.tif\r\n")
    (tmp_path / "one.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_lines(tmp_path / "list.txt", "names") == ["a.tif", "b.tif"]
    assert files.read_json(tmp_path / "one.json", "numbers") == {"a": 1}


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[1e999]", "[-Infinity]", f"[{'9' * 400}]", f"[{'9' * 5000}]"]
)
def test_json_that_is_too_deep_or_holds_numbers_that_are_too_large_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=f"a.json cannot be read .*; expected {EXPECTED}"):
        files.read_json(tmp_path / "a.json", EXPECTED)


def test_huge_json_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(files.LARGEST_JSON + 1)
    with pytest.raises(ValueError, match=f"a.json cannot be read .*more than any JSON file.*; expected {EXPECTED}"):
        files.read_json(tmp_path / "a.json", EXPECTED)


def test_a_raster_comes_with_its_place(tmp_path):
    values = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    write_raster(tmp_path / "a.tif", values, crs="EPSG:32632", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 6e6))
    got, place = files.read_raster(tmp_path / "a.tif", (2, None, 4), "uint16", EXPECTED)
    np.testing.assert_array_equal(got, values)
    assert place["crs"] == "EPSG:32632" and place["transform"].tolist() == [10, 0, 5e5, 0, -10, 6e6]


def test_a_raster_without_a_place_says_so(tmp_path):
    write_raster(tmp_path / "a.tif", np.zeros((1, 2, 2), np.uint8))
    _, place = files.read_raster(tmp_path / "a.tif", (1, 2, 2), "uint8", EXPECTED)
    assert place["crs"] == "" and np.isnan(place["transform"]).all()


def test_a_raster_out_of_an_archive(tmp_path):
    values = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    write_raster(tmp_path / "a.tif", values)
    content, path = (tmp_path / "a.tif").read_bytes(), tmp_path / "all.tar" / "a.tif"
    np.testing.assert_array_equal(files.read_raster(path, (2, 3, 4), "uint16", EXPECTED, content)[0], values)
    with pytest.raises(ValueError, match=rf"{path} cannot be read .*; expected {EXPECTED}; download"):
        files.read_raster(path, (2, 3, 4), "uint16", EXPECTED, content[:50])


def png(tmp_path, values):
    shape = dict(count=len(values), height=values.shape[1], width=values.shape[2], dtype=values.dtype)
    with rasterio.open(tmp_path / "a.png", "w", driver="PNG", **shape) as file:
        file.write(values)
    return (tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_a_png_keeps_its_bands(tmp_path, bands):
    """Also colours where the fourth band is 0, which viewers take for transparent."""
    values = np.random.default_rng(0).integers(0, 256, (bands, 40, 40), dtype=np.uint8)
    values[-1, :20] = 0
    got = files.read_png(tmp_path / "a.png", bands, 40, EXPECTED, png(tmp_path, values))
    np.testing.assert_array_equal(got, values)
    assert got.flags.c_contiguous and got.flags.writeable


def test_spoiled_png_images(tmp_path):
    content, path = (
        png(tmp_path, np.random.default_rng(0).integers(0, 256, (4, 40, 40), dtype=np.uint8)),
        tmp_path / "a",
    )
    for spoiled in (b"", b"<html>", content[: len(content) // 2], content[:30], content[:90] + b"x" + content[91:]):
        with pytest.raises(ValueError, match=rf"{path} cannot be read .*; expected {EXPECTED}; download"):
            files.read_png(path, 4, 40, EXPECTED, spoiled)
    for bands, side in ((3, 40), (4, 41)):
        with pytest.raises(ValueError, match=rf"{path} is uint8 \(4, 40, 40\); expected {EXPECTED}"):
            files.read_png(path, bands, side, EXPECTED, content)


def test_what_a_raster_says_stands_for_nothing(tmp_path):
    write_raster(tmp_path / "a.tif", np.zeros((1, 2, 2), np.int16), nodata=-9999)
    assert files.read_raster_and_nodata(tmp_path / "a.tif", (1, 2, 2), "int16", EXPECTED)[2] == -9999


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_a_map_of_classes(tmp_path, dtype):
    numbers = np.array([[0, 1], [1, 2]], dtype)
    write_raster(tmp_path / "a.tif", numbers[None])
    got = files.read_class_map(tmp_path / "a.tif", 2, (-1, 0, 1, 2), EXPECTED)
    assert got.dtype == np.int8 and got.tolist() == numbers.tolist()
    with pytest.raises(ValueError, match=rf"a\.tif holds \[0, 2\]; expected {EXPECTED}"):
        files.read_class_map(tmp_path / "a.tif", 2, (-1, 1), EXPECTED)


def test_an_npy_array_of_any_shape(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1, 2, 3), np.int16))
    assert files.read_npy(tmp_path / "a.npy", None, "iu", EXPECTED).shape == (1, 2, 3)


READERS = {
    "a.tif": lambda path: files.read_raster(path, (1, 2, 2), "uint8", EXPECTED),
    "a.npy": lambda path: files.read_npy(path, (2,), "f", EXPECTED),
    "mapped.npy": lambda path: files.read_npy(path, (2,), "f", EXPECTED, mapped=True),
    "a.npz": lambda path: files.read_npz(path, EXPECTED),
    "a.h5": lambda path: files.read_hdf5(path, ["x"], EXPECTED),
    "shapes.h5": lambda path: files.read_hdf5(path, ["x"], EXPECTED, np.shape),
    "row.h5": lambda path: files.read_hdf5_row(path, ["x"], 0, EXPECTED),
    "a.json": lambda path: files.read_json(path, EXPECTED),
    "a.txt": lambda path: files.read_lines(path, EXPECTED),
    "a.csv": lambda path: files.read_table(path, ["x"], EXPECTED),
}


@pytest.mark.parametrize("name", READERS)
def test_missing_files_are_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"no .*{name}; expected {EXPECTED}"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_unreadable_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe\x00 nothing like it")
    with pytest.raises(ValueError, match=rf"(?s){name} cannot be read .*; expected {EXPECTED}; download or copy it"):
        READERS[name](tmp_path / name)


WRITERS = {
    "a.tif": lambda path: write_raster(path, np.random.default_rng(0).integers(0, 9, (1, 90, 90), np.uint8)),
    "a.npy": lambda path: np.save(path, np.zeros(999)),
    "mapped.npy": lambda path: np.save(path, np.zeros(999)),
    "a.npz": lambda path: np.savez(path, x=np.zeros(999)),
    "a.json": lambda path: path.write_text(json.dumps(list(range(99)))),
}


@pytest.mark.parametrize("name", WRITERS)
def test_truncated_files_are_named(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{name} cannot be read"):
        READERS[name](path)


def test_a_mapped_array_gives_the_cut_that_is_taken(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(24).reshape(2, 3, 4))
    array = files.read_npy(tmp_path / "a.npy", (2, None, 4), "i", EXPECTED, mapped=True)
    assert isinstance(array, np.memmap) and array[1, 2, 1:3].tolist() == [21, 22]


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_pickles_are_never_opened(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    path, values = tmp_path / name, np.array([Bomb()], object)
    np.save(path, values) if name == "a.npy" else np.savez(path, x=values)
    with pytest.raises(ValueError, match=rf"{name} cannot be read .*allow_pickle=False"):
        READERS[name](path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=rf"{name} cannot be read"):
        READERS[name](path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(("shape", "dtype"), [((2, 3), "f"), ((None, 4), "f"), ((2, 3, 1), "f"), ((2, None), "int32")])
def test_other_shapes_and_dtypes_are_refused(tmp_path, shape, dtype):
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32) if dtype == "int32" else np.zeros((3, 3), np.float32))
    with pytest.raises(ValueError, match=rf"a\.npy is float32 \(\d, 3\); expected {EXPECTED}"):
        files.read_npy(tmp_path / "a.npy", shape, dtype, EXPECTED)


def test_several_dtypes_may_be_allowed(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.int16))
    assert files.read_npy(tmp_path / "a.npy", (None, 3), ("float32", "i"), EXPECTED).dtype == np.int16


def test_hdf5_keys_that_are_missing_are_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(3)
    assert files.read_hdf5(tmp_path / "a.h5", ["x"], EXPECTED)["x"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"a\.h5 has no \['y'\]"):
        files.read_hdf5(tmp_path / "a.h5", ["x", "y"], EXPECTED)


def write_hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array


def test_shapes_and_single_rows_of_hdf5(tmp_path):
    path, values = tmp_path / "a.h5", np.arange(6).reshape(3, 2)
    write_hdf5(path, x=values, y=values + 10)
    assert files.read_hdf5(path, ["x"], EXPECTED, np.shape) == {"x": (3, 2)}
    for row in (2, 0):
        got = files.read_hdf5_row(path, ["x", "y"], row, EXPECTED)
        assert got["x"].tolist() == values[row].tolist() and got["y"].tolist() == (values[row] + 10).tolist()
    assert files.read_hdf5(path, ["x"], EXPECTED)["x"].shape == (3, 2)  # though it is open for its rows
    with pytest.raises(ValueError, match=r"a\.h5 cannot be read .*; expected"):
        files.read_hdf5_row(path, ["x"], 3, EXPECTED)
    with pytest.raises(ValueError, match=r"a\.h5 cannot be read .*; expected"):
        files.read_hdf5_row(path, ["z"], 0, EXPECTED)


def test_a_replaced_hdf5_file_is_opened_anew(tmp_path):
    path, newer = tmp_path / "a.h5", tmp_path / "b.h5"
    write_hdf5(path, x=np.arange(3))
    write_hdf5(newer, x=np.arange(3) + 10)
    assert files.read_hdf5_row(path, ["x"], 1, EXPECTED)["x"] == 1
    newer.replace(path)
    assert files.read_hdf5_row(path, ["x"], 1, EXPECTED)["x"] == 11


def test_a_forked_process_opens_the_hdf5_file_for_itself(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    write_hdf5(path, x=np.arange(3))
    files.read_hdf5_row(path, ["x"], 1, EXPECTED)
    before = files._open_hdf5.cache_info().misses
    files.read_hdf5_row(path, ["x"], 2, EXPECTED)
    assert files._open_hdf5.cache_info().misses == before
    monkeypatch.setattr(files.os, "getpid", lambda: -1)
    assert files.read_hdf5_row(path, ["x"], 2, EXPECTED)["x"] == 2
    assert files._open_hdf5.cache_info().misses == before + 1


def test_cells_that_a_comma_has_shifted(tmp_path):
    """A number with a comma at the end of a row would lose what follows it."""
    (tmp_path / "a.csv").write_text(",tile,agb\n0,x,12\n1,y,12,5\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 3: more cells than the header's 3; expected numbers"):
        files.read_table(tmp_path / "a.csv", ["tile", "agb"], "numbers")
    (tmp_path / "a.csv").write_text(",tile,agb\n0,x,12,\n")
    assert files.read_table(tmp_path / "a.csv", ["tile", "agb"], "numbers") == [{"": "0", "tile": "x", "agb": "12"}]


def test_a_column_that_is_there_twice(tmp_path):
    (tmp_path / "a.csv").write_text("tile,split,split\nx,train,val\n")
    with pytest.raises(ValueError, match=r"a\.csv has the column 'split' twice; expected splits"):
        files.read_table(tmp_path / "a.csv", ["tile", "split"], "splits")
    assert files.read_table(tmp_path / "a.csv", ["tile"], "tiles")[0]["tile"] == "x"


def test_tables(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfx,y\r\n1,2\r\n3,\r\n")
    assert files.read_table(path, ["x", "y"], EXPECTED) == [{"x": "1", "y": "2"}, {"x": "3", "y": ""}]
    with pytest.raises(ValueError, match=r"has columns \['x', 'y'\] and lacks \['z'\]"):
        files.read_table(path, ["x", "z"], EXPECTED)
    path.write_text("x,y\n1,2\n3\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 3: fewer cells"):
        files.read_table(path, ["x", "y"], EXPECTED)
    path.write_text("x,y,z\n1,2,3\n3,4\n")  # cut off in a column that nobody asked for
    with pytest.raises(ValueError, match=r"a\.csv, line 3: fewer cells"):
        files.read_table(path, ["x", "y"], EXPECTED)


@pytest.mark.parametrize(("package", "name"), [("rasterio", "a.tif"), ("h5py", "a.h5")])
def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install -e '\.\[data\]'"):
        READERS[name](tmp_path / name)
