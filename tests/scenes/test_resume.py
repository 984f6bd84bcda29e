"""Interrupted runs go on: the same bytes after kills, exit code 75 of a stop, other requests refused, full disks."""

import errno
import os
import pathlib
import random
import signal
import time

import pytest

from anysat_jax.errors import Preempted
from anysat_jax.scenes import cli, outputs, tiles, work, workers
from anysat_jax.scenes.run import embed
from tests import forked
from tests.scenes.fake_scenes import model, save_model, write_stack

WINDOWS = 28


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Words of a command that embeds a scene in 28 windows of four tiles, but for the output."""
    folder = tmp_path_factory.mktemp("scene")
    write_stack(folder / "s2", "s2", 96, 144)
    weights = save_model(folder / "tiny.safetensors", model("s2"))
    words = f"--s2 {folder / 's2'} --weights {weights} --patch-size 20 --resolution 20 --tile 160 --batch 4"
    return [*words.split(), "--bounds", "500000,5399040,501440,5400000"]


def run(words, output):
    """The command line in a process of its own."""
    tiles.MOST_CELLS = 2
    whole = workers.write_window
    workers.write_window = lambda *args: time.sleep(0.03) or whole(*args)  # as a model that is not tiny
    os.environ["JAX_PLATFORMS"] = "cpu"
    cli.end_soon_on_interrupt()
    raise SystemExit(cli.main("embed", [*words, "--output", str(output)]))


def done(output):
    return len(list(pathlib.Path(f"{output}.parts").glob("result/*[fy]")))


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while process.is_alive() and not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_the_bytes_are_the_same(tmp_path, command, kills):
    rng = random.Random(0)
    assert forked.call(run, command, tmp_path / "whole.tif") == 0
    output, codes = tmp_path / "killed.tif", []
    for _ in range(kills):
        # Some before the first window: while the model is compiled or tiles are sampled.
        process, enough = forked.start(run, command, output), done(output) + rng.randint(0, 2)
        wait_for(lambda enough=enough: done(output) >= enough, process)
        time.sleep(rng.uniform(0, 0.06))
        process.kill()
        process.join()
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * kills and not output.exists()
    assert 0 < done(output) < WINDOWS
    assert forked.call(run, command, output) == 0
    for name in ("{}.tif", "{}_input.tif"):
        ours, theirs = (tmp_path / name.format(which) for which in ("killed", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert {path.name for path in tmp_path.iterdir() if "killed" in path.name} >= {"killed.tif", "killed_input.tif"}
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_keeps_finished_windows_and_ends_with_75(tmp_path, command, number):
    output = tmp_path / "emb.tif"
    process = forked.start(run, command, output)
    wait_for(lambda: done(output) >= 2, process)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == 75 and 2 <= done(output) < WINDOWS and not output.exists()


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A scene, and what of an output is left of a run that ended after two windows."""
    monkeypatch.setattr(tiles, "MOST_CELLS", 2)
    stack, weights = write_stack(tmp_path / "in", "s2", 60, 60), model("s2")
    options = dict(patch_size=20, resolution=20, tile=160, batch=8, say=lambda line: None)
    output, count = tmp_path / "emb.tif", []
    whole = work.write_part

    def write_two(folder, *args):
        if count.append(1) or len(count) > 4:
            raise Preempted("enough")
        return whole(folder, *args)

    monkeypatch.setattr(work, "write_part", write_two)
    with pytest.raises(Preempted):
        embed({"s2": stack}, weights, output, **options)
    monkeypatch.setattr(work, "write_part", whole)
    assert done(output) == 2
    return stack, weights, output, options


def test_finished_windows_are_not_done_again(stopped, monkeypatch):
    stack, weights, output, options = stopped
    written, whole = [], work.write_part
    monkeypatch.setattr(
        work, "write_part", lambda folder, name, *args: written.append(name) or whole(folder, name, *args)
    )
    lines = []
    embed({"s2": stack}, weights, output, **options | {"say": lines.append})
    assert len(set(written)) == len(written) / 2 and min(written) == "0000002"
    assert any("of which 2 are finished" in line for line in lines)
    assert not pathlib.Path(f"{output}.parts").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 10}, r"its product.bands was 32 and is 64 now; give the former request, another --output, or"),
        ({"dtype": "int8"}, "its stored.dtype was float32 and is int8 now"),
        (
            {"normalise": {"s2": {"mean": [1.0] * 10, "std": [1.0] * 10}}},
            "its statistics.s2 was .* now; give the former",
        ),
        ({"tile": 200}, "its tiles.patches was 8 and is 10 now"),
    ],
)
def test_other_options_are_refused(stopped, change, message):
    stack, weights, output, options = stopped
    with pytest.raises(ValueError, match=f"{output}.parts has finished windows of another request: {message}"):
        embed({"s2": stack}, weights, output, **options | change)
    assert done(output) == 2


def test_other_weights_and_inputs_are_refused(stopped):
    stack, weights, output, options = stopped
    with pytest.raises(ValueError, match="its weights.encoder was "):
        embed({"s2": stack}, model("s2", seed=1), output, **options)
    file = stack.acquisitions[0].bands[0].path
    os.utime(file, ns=(0, 10**15))
    with pytest.raises(ValueError, match=f"its inputs.s2.0: {file.name} was "):
        embed({"s2": stack}, weights, output, **options)


def test_a_batch_of_another_size_goes_on(stopped):
    stack, weights, output, options = stopped
    lines = []
    embed({"s2": stack}, weights, output, **options | {"batch": 30, "say": lines.append})
    assert output.exists() and any("of which 2 are finished" in line for line in lines)


def test_an_output_that_exists_is_kept(stopped):
    stack, weights, output, options = stopped
    embed({"s2": stack}, weights, output, **options)
    content = output.read_bytes()
    again = embed({"s2": stack}, weights, output, **options)
    assert "is finished already" in again.summary
    with pytest.raises(ValueError, match=r"emb.tif exists and is not the result of this request: delete it, or choose"):
        embed({"s2": stack}, weights, output, **options | {"resolution": 10})
    assert output.read_bytes() == content
    output.write_text("notes of mine")
    with pytest.raises(ValueError, match=r"emb.tif exists and is not the result"):
        embed({"s2": stack}, weights, output, **options)
    assert output.read_text() == "notes of mine"


@pytest.mark.parametrize("place", ["write_part", "finish"])
def test_a_full_disk_is_one_sentence_and_leaves_no_result(stopped, monkeypatch, place):
    stack, weights, output, options = stopped

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output))

    module = {"write_part": work, "finish": outputs}[place]
    with monkeypatch.context() as patch:
        patch.setattr(module, place if place == "write_part" else "move_whole", full)
        with pytest.raises(OSError, match="No space left on device"):
            embed({"s2": stack}, weights, output, **options)
    assert not output.exists() and not list(output.parent.glob("*.tmp"))
    embed({"s2": stack}, weights, output, **options)
    assert output.exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, command, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main("embed", [*command, "--output", str(tmp_path / "file" / "emb.tif")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[1:] == [f"anysat embed: there is no folder {tmp_path / 'file'} for emb.tif: make it first"]


def test_two_runs_of_one_output_take_turns(tmp_path, command):
    """The second waits for the first, and finds its result."""
    output = tmp_path / "emb.tif"
    processes = [forked.start(run, command, output) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert not list(tmp_path.glob("*.parts")) and output.exists()
