"""Weights on the Hugging Face Hub, named `hf:ORGANISATION/NAME[@REVISION][/FILE]`.

huggingface_hub downloads them into its cache, with a progress bar and from where a broken connection ended. What is in
the cache needs no network. $HF_ENDPOINT, $HF_HOME, $HF_TOKEN and $HF_HUB_OFFLINE are its settings.
"""

import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable

import safetensors

from anysat_jax.weights.exported import FORMAT, SUFFIX

PREFIX = "hf:"
PUBLISHED = "AnySat.pth"  # preferred among several .pth files: the name of the published weights
_SOURCE = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?")


def locate(source: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the local path of a source of weights, downloading it if it is on the Hub.

    Without FILE the one exported .safetensors file of the repository is taken, or else its one .pth file.

    Raises:
      ValueError: the source is malformed; the repository has no weights, or several; or the file is not the one that
        the Hub announced.
      ImportError: huggingface_hub is not installed.
      OSError: the file is not there, must not be read, or cannot be downloaded.
    """
    text = os.fspath(source)
    if not text.startswith(PREFIX):
        return pathlib.Path(text)
    match = _SOURCE.fullmatch(text)
    if not match or ".." in pathlib.PurePosixPath(match[3] or "").parts:
        raise ValueError(f"{text!r} does not name weights on the Hub; expected hf:ORGANISATION/NAME[@REVISION][/FILE]")
    repository, revision, file = match[1], match[2] or "main", match[3]
    try:
        from huggingface_hub import constants, errors, hf_hub_download
    except ImportError as error:
        remedy = "pip install -e '.[hub]', or download the file and name it in place of this"
        raise ImportError(f"{text} needs huggingface_hub: {remedy}") from error
    endpoint = os.environ.get("HF_ENDPOINT")  # huggingface_hub reads it once, when it is imported
    try:
        file = file or _choose(text, repository, revision, endpoint)
        found = hf_hub_download(
            repository, file, revision=revision, endpoint=endpoint, cache_dir=constants.HF_HUB_CACHE
        )
    except (errors.HTTPError, errors.EntryNotFoundError, OSError) as error:
        raise OSError(_problem(text, repository, revision, file, error)) from error
    _check_digest(text, pathlib.Path(found))
    return pathlib.Path(found)


def pinned(source: str | os.PathLike[str], path: pathlib.Path) -> str:
    """Returns a source on the Hub with the commit and the name of its file in the cache; another one as it is."""
    text = os.fspath(source)
    if not text.startswith(PREFIX):
        return text
    commit, *file = path.parts[path.parts.index("snapshots") + 1 :]
    return f"{PREFIX}{_SOURCE.fullmatch(text)[1]}@{commit}/{'/'.join(file)}"


def _choose(text: str, repository: str, revision: str, endpoint: str | None) -> str:
    """Returns the name of the file with weights; without a network that of the cache."""
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    api = HfApi(endpoint=endpoint)

    def remote_format(name: str) -> str | None:
        return api.parse_safetensors_file_metadata(repository, name, revision=revision).metadata.get("format")

    def local_format(name: str) -> str | None:
        with safetensors.safe_open(folder / name, "numpy") as file:
            return (file.metadata() or {}).get("format")

    try:
        return _only_weights(text, api.list_repo_files(repository, revision=revision), remote_format)
    except errors.HfHubHTTPError:
        raise
    except (errors.HTTPError, OSError):  # no network
        found = dict(cache_dir=constants.HF_HUB_CACHE, local_files_only=True, allow_patterns=[f"*{SUFFIX}", "*.pth"])
        folder = pathlib.Path(snapshot_download(repository, revision=revision, **found))
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return _only_weights(text, names, local_format)


def _only_weights(text: str, names: Iterable[str], format_of: Callable[[str], str | None]) -> str:
    """Returns the one file of ours, or else the one of the published form."""
    names = sorted(name for name in names if name.endswith((SUFFIX, ".pth")))
    found = [name for name in names if name.endswith(SUFFIX) and format_of(name) == FORMAT]
    if not found:
        published = [name for name in names if name.endswith(".pth")]
        found = [name for name in published if pathlib.PurePosixPath(name).name == PUBLISHED] or published
    if len(found) != 1:
        listed = f"several files of weights ({', '.join(found)}); name one: {text}/FILE"
        raise ValueError(f"{text} has {listed if found else 'no weights of AnySat: neither our .safetensors nor .pth'}")
    return found[0]


def _problem(text: str, repository: str, revision: str, file: str | None, error: Exception) -> str:
    """Returns what is wrong, and the remedy, in one sentence."""
    from huggingface_hub import constants, errors

    address = f"{os.environ.get('HF_ENDPOINT') or constants.ENDPOINT}/{repository}"
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{text}: {repository} has no revision {revision!r}; see {address}"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{text}: {repository} has no file {file!r} at {revision}; see {address}/tree/{revision}"
    if isinstance(error, errors.RepositoryNotFoundError) or getattr(response, "status_code", 0) in (401, 403):
        problem = f"{repository} is not there, private, or its terms are not accepted"
        return f"{text}: {problem}; see {address}, and log in with `hf auth login` or set $HF_TOKEN"
    cause = str(error.__cause__ or error).partition("\n")[0].rstrip(".")
    wanted = f"{address}/resolve/{revision}/{file}" if file else address
    remedy = f"get {wanted} where there is a network, put it into any folder here, and give its path in place of hf:..."
    return f"{text} is not in the cache {constants.HF_HUB_CACHE}, and cannot be downloaded ({cause}): {remedy}"


def _check_digest(text: str, path: pathlib.Path) -> None:
    """Compares a file with the SHA-256 under which the cache holds it; over plain HTTP only its size was compared."""
    blob = path.parent / path.readlink() if path.is_symlink() else path
    if re.fullmatch("[0-9a-f]{64}", blob.name):  # large files are held under it, small ones under a hash of git
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != blob.name:
            blob.unlink()
            path.unlink()
            problem = f"the download has the SHA-256 {digest}, expected {blob.name}"
            raise ValueError(f"{text}: {problem}; it was deleted: start again")
