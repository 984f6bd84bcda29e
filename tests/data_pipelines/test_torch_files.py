"""Files of torch.save: tensors and named classes come back, everything else is refused and nothing is executed."""

import builtins
import datetime
import os
import pathlib
import pickle

import numpy as np
import pytest

from data_pipelines.torch_files import read_torch

torch = pytest.importorskip("torch")

DAYS = [datetime.date(2020, 7, 1), datetime.datetime(2021, 2, 3, 12)]
EXPECTED = "what there should be"


def write(path, **content):
    torch.save(content, path)
    return path


def test_tensors_come_as_arrays_and_dates_as_dates(tmp_path):
    path = write(tmp_path / "a.pt", values=torch.arange(6.0).reshape(2, 3), days=DAYS, name="x", more=1)
    found = read_torch(path, ["values", "days", "name"], EXPECTED, (datetime.date, datetime.datetime))
    np.testing.assert_array_equal(found["values"], np.arange(6.0).reshape(2, 3))
    assert isinstance(found["values"], np.ndarray) and found["days"] == DAYS and found["name"] == "x"
    assert "more" not in found


def test_tensors_in_a_list_come_as_arrays(tmp_path):
    path = write(tmp_path / "a.pt", values=(torch.zeros(2), [torch.ones(3)], 1))
    first, (second,), third = read_torch(path, ["values"], EXPECTED)["values"]
    assert isinstance(first, np.ndarray) and second.tolist() == [1, 1, 1] and third == 1


def test_a_class_that_was_not_named_is_refused(tmp_path):
    path = write(tmp_path / "a.pt", days=DAYS)
    with pytest.raises(ValueError, match=r"a\.pt holds a pickled datetime\.date, which is refused"):
        read_torch(path, ["days"], EXPECTED)
    assert datetime.date not in torch.serialization.get_safe_globals()


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Open:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.mark.parametrize("attack", [Touch, Open])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, attack, zipped):
    trap, path = tmp_path / "trap", tmp_path / "a.pt"
    torch.save({"values": attack(str(trap))}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"a\.pt holds a pickled \S+, which is refused since .* from its publisher"):
        read_torch(path, ["values"], EXPECTED, (datetime.date,))
    assert not trap.exists()


def test_code_in_a_plain_pickle_is_not_run(tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "a.pt"
    path.write_bytes(pickle.dumps({"values": Touch(str(trap))}, protocol=2))
    with pytest.raises(ValueError, match=r"a\.pt"):
        read_torch(path, ["values"], EXPECTED)
    assert not trap.exists()


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
def test_damaged_files(tmp_path, how):
    path = write(tmp_path / "a.pt", values=torch.zeros(100))
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"<html>no</html>"}[how])
    with pytest.raises(ValueError, match=r"a\.pt cannot be read .* expected what there should be; download"):
        read_torch(path, ["values"], EXPECTED)


def test_missing_files_and_keys(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*a\.pt; expected what there"):
        read_torch(tmp_path / "a.pt", ["values"], EXPECTED)
    with pytest.raises(ValueError, match=r"a\.pt holds \['other'\] and lacks \['values'\]; expected what"):
        read_torch(write(tmp_path / "a.pt", other=1), ["values"], EXPECTED)
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b\.pt holds a list and lacks \['values'\]"):
        read_torch(tmp_path / "b.pt", ["values"], EXPECTED)


def test_without_torch_the_error_says_what_to_install(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("torch"):
            raise ImportError(f"no module named {name}")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"a\.pt needs torch: pip install -e '\.\[torch\]'"):
        read_torch(tmp_path / "a.pt", ["values"], EXPECTED)


def test_an_old_torch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    with pytest.raises(ImportError, match=r"needs torch 2\.6 or newer, and 2\.5\.1\+cu124 is here"):
        read_torch(tmp_path / "a.pt", ["values"], EXPECTED)
