"""Raw files: whatever is wrong with one, the error names it, says what was expected and what to do."""

import json
import pickle
import sys
import zipfile

import h5py
import numpy as np
import pytest
import rasterio

from data_pipelines import files, rasters
from data_pipelines.fakes.common import write_raster

EXPECTED = "what there should be"


def write_hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array


@pytest.mark.parametrize("name", ["../x.tif", "/etc/passwd", "a/../../x", "", " ", "a\0b"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="leads out of .*; the archive's metadata may only name files inside"):
        files.inside(tmp_path, name)


def test_links_that_lead_out_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=f"leads out of .*: a link leads to {tmp_path}/secret; copy the files in its"):
        files.inside(tmp_path / "in", "link/secret")
    assert files.inside(tmp_path, "a/b.tif") == tmp_path / "a" / "b.tif"
    assert files.inside(tmp_path / "in" / "link", "in/file").name == "file"


def test_stems_lie_between_prefix_and_suffix(tmp_path):
    """Also beside the files that macOS lays there."""
    for name in ("S2_1.npy", "S2_22.npy", "S1_1.npy", "S2_3.txt", "._S2_1.npy", ".DS_Store"):
        (tmp_path / name).touch()
    assert files.stems(tmp_path, ".npy", "S2_") == {"1", "22"} and files.stems(tmp_path / "none", ".npy") == set()
    assert files.stems(tmp_path, "") == {"S2_1.npy", "S2_22.npy", "S1_1.npy", "S2_3.txt"}


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


def png(tmp_path, values):
    write_raster(tmp_path / "a.png", values, driver="PNG")
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
    content = png(tmp_path, np.random.default_rng(0).integers(0, 256, (4, 40, 40), dtype=np.uint8))
    path = tmp_path / "a"
    for spoiled in (b"", b"<html>", content[: len(content) // 2], content[:30], content[:90] + b"x" + content[91:]):
        with pytest.raises(ValueError, match=rf"{path} cannot be read .*; expected {EXPECTED}; download"):
            files.read_png(path, 4, 40, EXPECTED, spoiled)
    for bands, side in ((3, 40), (4, 41)):
        with pytest.raises(ValueError, match=rf"{path} is uint8 \(4, 40, 40\); expected {EXPECTED}"):
            files.read_png(path, bands, side, EXPECTED, content)


READERS = {
    "a.tif": lambda path: rasters.read_raster(path, (1, 2, 2), "uint8", EXPECTED),
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


def test_several_shapes_and_dtypes_may_be_allowed(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.int16))
    assert files.read_npy(tmp_path / "a.npy", None, "iu", EXPECTED).shape == (2, 3)
    assert files.read_npy(tmp_path / "a.npy", (None, 3), ("float32", "i"), EXPECTED).dtype == np.int16


def test_shapes_and_single_rows_of_hdf5(tmp_path):
    path, values = tmp_path / "a.h5", np.arange(6).reshape(3, 2)
    write_hdf5(path, x=values, y=values + 10)
    assert files.read_hdf5(path, ["x"], EXPECTED, np.shape) == {"x": (3, 2)}
    for row in (2, 0):
        got = files.read_hdf5_row(path, ["x", "y"], row, EXPECTED)
        assert got["x"].tolist() == values[row].tolist() and got["y"].tolist() == (values[row] + 10).tolist()
    # Though it is open for its rows.
    assert files.read_hdf5(path, ["x"], EXPECTED)["x"].tolist() == values.tolist()
    with pytest.raises(ValueError, match=r"a\.h5 has no \['z'\]"):
        files.read_hdf5(path, ["x", "z"], EXPECTED)
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


TABLES = {
    "a column is missing": ("x,y\n1,2\n", r" has columns \['x', 'y'\] and lacks \['z'\]"),
    "a column is there twice": ("x,z,z\n1,2,3\n", " has the column 'z' twice"),
    "a row is cut off": ("x,z\n1,2\n3\n", ", line 3: fewer cells"),
    "cut off in a column that nobody asked for": ("x,z,y\n1,2,3\n3,4\n", ", line 3: fewer cells"),
    "shifted by the comma of a number": (",x,z\n0,a,12\n1,b,12,5\n", ", line 3: more cells than the header's 3"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_are_refused(tmp_path, case):
    text, message = TABLES[case]
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.csv{message}.*; expected {EXPECTED}"):
        files.read_table(tmp_path / "a.csv", ["x", "z"], EXPECTED)


def test_tables(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfx,y\r\n1,2\r\n3,\r\n")
    assert files.read_table(path, ["x", "y"], EXPECTED) == [{"x": "1", "y": "2"}, {"x": "3", "y": ""}]
    path.write_text(",tile,agb\n0,x,12,\n")
    assert files.read_table(path, ["tile", "agb"], "numbers") == [{"": "0", "tile": "x", "agb": "12"}]
    path.write_text("tile,split,split\nx,train,val\n")
    assert files.read_table(path, ["tile"], "tiles")[0]["tile"] == "x"


@pytest.mark.parametrize(("package", "name"), [("rasterio", "a.tif"), ("h5py", "a.h5")])
def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install -e '\.\[data\]'"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("form", ["link", "virtual", "external"])
def test_hdf5_datasets_that_lie_in_other_files_are_refused(tmp_path, form):
    write_hdf5(tmp_path / "b.h5", x=np.arange(3))
    (tmp_path / "raw").write_bytes(bytes(24))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if form == "link":
            file["x"] = h5py.ExternalLink("b.h5", "x")
        elif form == "external":
            file.create_dataset("x", (3,), "i8", external=[("raw", 0, 24)])
        else:
            layout = h5py.VirtualLayout((3,), "i8")
            layout[:] = h5py.VirtualSource("b.h5", "x", (3,))
            file.create_virtual_dataset("x", layout)
    for read in (READERS["a.h5"], READERS["row.h5"]):
        with pytest.raises(ValueError, match=r"a\.h5 cannot be read \(its 'x' lies in another file\)"):
            read(tmp_path / "a.h5")


def npy_header(shape, dtype="<f8"):
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    """What files announce is compared with one limit; each of these files is small."""
    limit = r"announces arrays of [\d,.]+ GiB; expected at most 2 GiB in one file: cut it into smaller ones"
    (tmp_path / "a.npy").write_bytes(npy_header((2**50, 64)))
    with zipfile.ZipFile(tmp_path / "header.npz", "w") as archive:
        archive.writestr("x.npy", npy_header((2**50,)))
    sparse = dict(count=1, height=60_000, width=60_000, dtype="uint8", SPARSE_OK=True, tiled=True)
    rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **sparse).close()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (2, 2**40), "f4", chunks=(1, 2**10))
    readers = {"header.npz": READERS["a.npz"]} | {name: READERS[name] for name in ("a.npy", "a.tif", "a.h5")}
    for name, read in readers.items():
        assert (tmp_path / name).stat().st_size < 1e6
        with pytest.raises(files.TooLargeError, match=f"{name} {limit}"):
            read(tmp_path / name)
    with pytest.raises(files.TooLargeError, match=limit):
        files.read_hdf5_row(tmp_path / "a.h5", ["x"], 0, EXPECTED)
    assert files.read_hdf5(tmp_path / "a.h5", ["x"], EXPECTED, np.shape) == {"x": (2, 2**40)}
    rasterio.open(tmp_path / "b.tif", "w", driver="GTiff", count=5000, height=2, width=2, dtype="uint8").close()
    with pytest.raises(files.TooLargeError, match=r"b\.tif has 5,000 bands; expected at most 4,096"):
        READERS["a.tif"](tmp_path / "b.tif")


def test_an_npz_bomb_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(2**20, np.uint8), y=np.zeros(2**20, np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 1e4 and READERS["a.npz"](tmp_path / "a.npz").keys() == {"x", "y"}
    monkeypatch.setattr(files, "MOST_BYTES", 2**21)
    with pytest.raises(files.TooLargeError, match=r"a\.npz announces arrays"):
        READERS["a.npz"](tmp_path / "a.npz")
