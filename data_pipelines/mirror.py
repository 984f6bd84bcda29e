"""A copy on this machine of a prepared dataset that lies elsewhere."""

import errno
import pathlib
import re
import shutil
from typing import Any

from data_pipelines.output import LocalOutput
from data_pipelines.places import cache_folder, temporary_name, to_stderr
from data_pipelines.plan import FILE_NAME as PLAN
from data_pipelines.remote import LAST_FILE, list_files, list_folders, local_name, open_url, remote_errors


def remote_versions(base: str, name: str) -> list[str]:
    """Versions of a dataset that are whole at `<base>/<name>`, the oldest first.

    Raises:
      OSError: the address cannot be reached.
    """
    file_system, folder = open_url(f"{base.rstrip('/')}/{name}")
    with remote_errors(base):
        folders = [one for one in list_folders(file_system, folder) if re.fullmatch(r"\d+\.\d+\.\d+", one)]
        whole = [one for one in folders if LAST_FILE in list_files(file_system, f"{folder}/{one}")]
    return sorted(whole, key=lambda version: tuple(map(int, version.split("."))))


def mirror(base: str, name: str, version: str) -> pathlib.Path:
    """Copies `<base>/<name>/<version>` into the cache, unless the same is there already.

    An interrupted copy goes on where it stood; files of the right size are not fetched again.

    Returns:
      The local folder.

    Raises:
      FileNotFoundError: there is no whole dataset at that address.
      OSError: it cannot be fetched or written.
    """
    url = f"{base.rstrip('/')}/{name}/{version}"
    file_system, folder = open_url(url)
    with remote_errors(url):
        files = list_files(file_system, folder)
        if LAST_FILE not in files:
            raise FileNotFoundError(f"no prepared dataset at {url}: it has no {LAST_FILE}")
        plan = file_system.cat_file(f"{folder}/{PLAN}")
    output = LocalOutput(cache_folder() / "mirrors" / local_name(base.rstrip("/")) / name / version)
    if _is_copy(output, files, plan):
        return output.target
    with output.lock():
        if not _is_copy(output, files, plan):
            _fetch_all(file_system, folder, url, output, files, plan)
        output.clear()
    return output.target


def _is_copy(output: LocalOutput, files: dict[str, int], plan: bytes) -> bool:
    """Whether the local folder has the same files by name and size, of the same plan."""
    if not output.is_whole() or output.read_whole(PLAN) != plan:
        return False
    return {path.name: path.stat().st_size for path in output.target.iterdir()} == files


def _fetch_all(
    file_system: Any, folder: str, url: str, output: LocalOutput, files: dict[str, int], plan: bytes
) -> None:
    import tqdm

    if output.read_part(PLAN) != plan:
        output.start_anew()
        output.put_part(PLAN, plan)
    done = {name: size for name, size in output.sizes().items() if files.get(name) == size}
    missing = [name for name in files if name not in done]
    _check_space(output, url, sum(files[name] for name in missing))
    to_stderr(f"fetching {url} to {output.target}")
    progress = dict(total=sum(files.values()), initial=sum(done.values()), unit="B", unit_scale=True, mininterval=0.5)
    with tqdm.tqdm(desc="fetching", **progress) as bar:
        for name in missing:
            _fetch(file_system, f"{folder}/{name}", output, name, files[name])
            bar.update(files[name])
    nothing = output.scratch / "nothing"
    nothing.mkdir(exist_ok=True)
    output.publish(nothing)


def _fetch(file_system: Any, address: str, output: LocalOutput, name: str, size: int) -> None:
    """One file under a temporary name, then, if it has the right size, under its own."""
    if "/" in name or name in (".", ".."):
        raise OSError(errno.EINVAL, f"{address} is no name for a file")
    temporary = output.scratch / temporary_name(name)
    with remote_errors(address):
        file_system.get_file(address, str(temporary))
    found = temporary.stat().st_size
    if found != size:
        raise OSError(errno.EREMOTEIO, f"{address}: {found} bytes arrived of {size}; start again")
    output.put_data(temporary, name)


def _check_space(output: LocalOutput, url: str, num_bytes: int) -> None:
    free = shutil.disk_usage(output.scratch).free
    if free < num_bytes:
        message = f"{free / 1e9:.2f} GB are free at {output.target.parent}, {url} needs {num_bytes / 1e9:.2f} GB more"
        raise OSError(errno.ENOSPC, f"{message}; point $XDG_CACHE_HOME to a folder with space for it")
