"""Weights on the Hub, against a server on this machine that speaks its protocol."""

import hashlib
import http.server
import json
import pathlib
import re
import threading

import pytest

from anysat_jax import AnySat, export
from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_encoder
from anysat_jax.weights.exported import load_exported, save_exported
from anysat_jax.weights.hub import locate
from anysat_jax.weights.load import initial_student, load_weights

constants = pytest.importorskip("huggingface_hub.constants")

COMMIT, OLDER = "a" * 40, "b" * 40
MODEL = ModelConfig(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("s2",))
REFUSED = {"RepoNotFound": 401, "GatedRepo": 403, "": 403}


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers for the repository org/name of the server's `files`; `cut` closes the first download half way."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.server
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if hub.refuse is not None:
            return self.answer(REFUSED[hub.refuse], b"", {"X-Error-Code": hub.refuse})
        path = re.fullmatch(r"(?:/api/models)?/org/name/(tree|resolve)/(\w+)(?:/(.+?))?(?:\?.*)?", self.path)
        if not path:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        commit = {"main": COMMIT}.get(path[2], path[2])
        if commit not in (COMMIT, OLDER):
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if path[1] == "tree":
            listed = [
                {"type": "file", "path": name, "size": len(one), "oid": "0" * 40} for name, one in hub.files.items()
            ]
            return self.answer(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})
        if path[3] not in hub.files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return self.send_part(hub.files[path[3]], commit)

    def send_part(self, content, commit):
        digest = hashlib.sha256(content + (b"!" if self.server.other_digest else b"")).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not first:
            return self.answer(200, content, headers)
        part = content[int(first) : int(last) + 1 if last else None]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        return self.answer(206, part, headers)

    def answer(self, status, content, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cut and len(content) > 1000
            self.server.cut = self.server.cut and not cut
            self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_exported(path, MODEL, init_encoder(MODEL, 3), source={"name": "mini"})
    return path.read_bytes()


@pytest.fixture
def hub(weights, tmp_path, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.files = {"models/mini.safetensors": weights, "README.md": b"# mini"}
        server.requests, server.refuse, server.cut, server.other_digest = [], None, False, False
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def downloads(server):
    return [part for method, path, part in server.requests if method == "GET" and "/resolve/" in path]


def test_a_file_is_downloaded_once_and_needs_no_network_then(hub, weights, monkeypatch):
    path = locate("hf:org/name/models/mini.safetensors")
    assert path.read_bytes() == weights and downloads(hub) == [None]
    assert AnySat.from_pretrained("hf:org/name@main/models/mini.safetensors").config == MODEL
    assert downloads(hub) == [None]
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("hf:org/name") == locate("hf:org/name/models/mini.safetensors") == path
    assert not hub.requests


def test_a_download_that_is_cut_half_way_goes_on_from_there(hub, weights, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is kept of a broken connection
    hub.cut = True
    assert locate("hf:org/name/models/mini.safetensors").read_bytes() == weights
    assert downloads(hub) == [None, f"bytes={len(weights) // 2 // 1000}000-"]


def test_a_file_with_another_checksum_is_refused_and_deleted(hub, weights, tmp_path):
    hub.other_digest = True
    expected, found = (hashlib.sha256(one).hexdigest() for one in (weights + b"!", weights))
    with pytest.raises(
        ValueError, match=f"^hf:org/name/models/mini.safetensors: .*{found}, expected {expected}; it was"
    ):
        locate("hf:org/name/models/mini.safetensors")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 1000]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:org/name/other.pth", r"org/name has no file 'other\.pth' at main; see http://127.*/org/name/tree/main"),
        ("hf:org/name@v9/models/mini.safetensors", "org/name has no revision 'v9'; see http://127"),
        ("hf:org/other", "org/other is not there, private, or its terms are not accepted; see .*`hf auth login`"),
    ],
)
def test_what_is_not_there_is_named(hub, name, message):
    with pytest.raises(OSError, match=f"^{name}: {message}") as error:
        locate(name)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=f"^init = '{name}': {name}: {message}"):
        initial_student(name, MODEL, 0, {}, {})


@pytest.mark.parametrize("refuse", REFUSED)
@pytest.mark.parametrize("name", ["hf:org/name", "hf:org/name/models/mini.safetensors"])
def test_a_private_repository(hub, name, refuse):
    hub.refuse = refuse
    with pytest.raises(OSError, match=f"^{name}: org/name is not there, private, or its terms.* or set .HF_TOKEN$"):
        locate(name)


@pytest.mark.parametrize("name", ["hf:org/name", "hf:org/name/models/mini.safetensors"])
def test_without_a_network_the_message_names_the_file_and_what_to_do(hub, tmp_path, monkeypatch, name):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError, match=f"^{name} is not in the cache {tmp_path}/cache, and cannot be downloaded"
    ) as error:
        load_weights(name)
    assert re.search(
        r": get http://127\S*/org/name.* there is a network, put it into any folder here", str(error.value)
    )
    assert "\n" not in str(error.value) and not hub.requests


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ({"a.safetensors": b"", "b.pth": b""}, "a.safetensors"),
        ({"other.safetensors": (2).to_bytes(8, "little") + b"{}", "b.pth": b"pth"}, "b.pth"),
        ({"models/AnySat.pth": b"pth", "models/old.pth": b"", "config.json": b"{}"}, "models/AnySat.pth"),
        (
            {"a.safetensors": b"", "b.safetensors": b""},
            r"several files of weights \(a.safetensors, b.safetensors\)",
        ),
        ({"a.pth": b"", "b.pth": b""}, r"several files of weights \(a.pth, b.pth\); name one: hf:org/name/FILE"),
        ({"README.md": b""}, "no weights of AnySat: neither our .safetensors nor .pth"),
    ],
)
def test_the_file_that_is_chosen(hub, weights, files, chosen):
    hub.files = {name: content or weights for name, content in files.items()}
    if chosen in files:
        assert locate("hf:org/name") == locate(f"hf:org/name/{chosen}")
    else:
        with pytest.raises(ValueError, match=f"^hf:org/name has {chosen}"):
            locate("hf:org/name")


def test_what_is_made_of_a_revision_names_its_commit(hub, tmp_path, monkeypatch, golden_folder):
    pytest.importorskip("torch")
    hub.files = {"models/AnySat.pth": (golden_folder / "weights.pth").read_bytes()}
    export.export("hf:org/name", tmp_path / "a.safetensors")
    source = load_exported(tmp_path / "a.safetensors").source
    assert source == {"source": f"hf:org/name@{COMMIT}/models/AnySat.pth", "kind": "published"}
    assert OLDER in locate(f"hf:org/name@{OLDER}").parts


@pytest.mark.parametrize(
    "name", ["hf:", "hf:name", "hf:org/name@", "hf:org/name/", "hf:org/name/../../a.pth", "hf:a/b c"]
)
def test_names_that_are_malformed(name):
    with pytest.raises(ValueError, match="does not name weights on the Hub; expected hf:ORGANISATION/NAME"):
        locate(name)


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"^hf:org/name needs huggingface_hub: pip install -e '\.\[hub\]'"):
        locate("hf:org/name")
    assert locate("runs/mini") == pathlib.Path("runs/mini")
