"""Several processes as one run: how they are named, how they agree, and how they part. Real ones: test_processes."""

import socket
import threading

import jax
import pytest

from anysat_jax.errors import ConfigError
from anysat_jax.train import distributed


class Coordinator:
    """Stands for the one of JAX: values by name, for which the processes wait."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, place, value):
        with self.changed:
            self.values[place] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, place, milliseconds):
        with self.changed:
            assert self.changed.wait_for(lambda: place in self.values, timeout=60)
            return self.values[place]

    def key_value_try_get(self, place):
        if place not in self.values:
            raise RuntimeError("NOT_FOUND")
        return self.values[place]


@pytest.fixture
def together(monkeypatch):
    """Runs a function as each of three processes at once; gives what they return or raise."""
    here, coordinator = threading.local(), Coordinator()

    class Rounds:
        def __next__(self):
            here.round = getattr(here, "round", 0) + 1
            return here.round

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: here.index)
    monkeypatch.setattr(distributed, "_ROUNDS", Rounds())
    monkeypatch.setattr(distributed, "_coordinator", lambda: coordinator)
    monkeypatch.setattr(distributed.socket, "gethostname", lambda: f"host-{'abc'[here.index]}")

    def together(work):
        ends = [None] * 3

        def be(index):
            here.index = index
            try:
                ends[index] = work(index)
            except Exception as error:
                ends[index] = error

        threads = [threading.Thread(target=be, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ends

    return together


def test_processes_by_hand():
    expected = dict(coordinator_address="198.51.100.2:8476", num_processes=4, process_id=3)
    assert distributed.parse("198.51.100.2:8476,4,3") == expected


@pytest.mark.parametrize(
    ("address", "bound"),
    [
        ("127.0.0.1:80", True),
        ("localhost:80", True),
        ("0.0.0.0:80", True),  # what is named, as any address of this machine
        ("198.51.100.2:80", False),  # of another machine
        ("head:80", False),
    ],
)
def test_the_coordinator_listens_where_it_is_named(address, bound):
    assert distributed.parse(f"{address},2,0").get("coordinator_bind_address") == (address if bound else None)


@pytest.mark.parametrize(
    "processes", ["two", "host,2,0", "host:1,2", "host:1,2,-1", "host:1,2,0,0", "Auto", "host:65536,2,0"]
)
def test_what_does_not_name_processes_is_refused(processes):
    with pytest.raises(ConfigError, match=f"--processes={processes} must be 'auto' or HOST:PORT,COUNT,INDEX"):
        distributed.start(processes)


def test_an_index_beyond_the_last_is_refused():
    with pytest.raises(ConfigError, match="of 2 processes the last has index 1, not 2"):
        distributed.start("host:1,2,2")


@pytest.mark.parametrize(
    ("processes", "error", "message"),
    [
        ("auto", ValueError("coordinator_address should be defined."), "neither a Cloud TPU, nor SLURM, .* was found"),
        (
            "127.0.0.1:1,2,0",
            RuntimeError("DEADLINE_EXCEEDED: late\nmore"),
            r"not find each other \(DEADLINE_EXCEEDED: late\)",
        ),
    ],
)
def test_processes_that_do_not_find_each_other_are_told_so(monkeypatch, processes, error, message):
    def initialize(**_):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ConfigError, match=message):
        distributed.start(processes)


def test_an_unknown_host_is_refused_at_once_and_who_is_waited_for_is_said(monkeypatch, caplog):
    def unknown(host, port):
        assert host == "head"
        raise socket.gaierror(-2, "Name or service not known")

    waited = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: waited.append(True) or 1 / 0)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    caplog.set_level("INFO")
    with pytest.raises(ConfigError, match=r"--processes=head:1,2,0: .* \(.*Name or service not known\); start all"):
        distributed.start("head:1,2,0")
    assert not waited and "waiting for the other processes at head:1, at most 300 s" in caplog.text
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # where the first pod's name may get its address later
    with pytest.raises(ZeroDivisionError):
        distributed.start("head:1,2,0")


def test_a_process_on_its_own_asks_nobody():
    distributed.start("")
    distributed.check_same(lambda: pytest.fail("not asked for"), "nothing")
    assert distributed.agree(lambda: 7) == 7 and distributed.shutdown(75) == 75
    with pytest.raises(ZeroDivisionError):
        distributed.agree(lambda: 1 // 0)


def test_what_all_can_do_is_done(together):
    assert together(lambda index: distributed.agree(lambda: index + 1)) == [1, 2, 3]


def test_what_one_cannot_do_is_said_by_all(together):
    def find(index):
        if index:
            raise ConfigError(f"no data number {index}")

    first, second, third = together(lambda index: distributed.agree(lambda: find(index)))
    assert isinstance(first, ConfigError)
    assert str(first) == "process 1 (host-b) and 1 more of 3 cannot go on: no data number 1"
    assert [str(second), str(third)] == ["no data number 1", "no data number 2"]


def test_an_error_without_words_is_named(together):
    def fail(index):
        if index == 2:
            raise RuntimeError

    first, _, third = together(lambda index: distributed.agree(lambda: fail(index)))
    assert str(first) == "process 2 (host-c) of 3 cannot go on: RuntimeError" and isinstance(third, RuntimeError)


def test_the_same_facts_are_fine_again_and_again(together):
    def check(index):
        for round_ in range(3):
            distributed.check_same(lambda: {"config": {"seed": round_, "sizes": [1, 2]}}, "mend it")  # noqa: B023
        return "fine"

    assert together(check) == ["fine"] * 3


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({"a": {"b": 1}, "c": 3}, "c is 2 in process 0 (host-a) and 3 in process 2 (host-c); mend it"),
        ({"a": {}, "c": 2}, "a.b is 1 in process 0 (host-a) and None in process 2 (host-c); mend it"),
        ({"a": {"b": 1}, "c": 2, "d": 0}, "d is None in process 0 (host-a) and 0 in process 2 (host-c); mend it"),
    ],
)
def test_a_fact_that_differs_is_named_by_all(together, last, message):
    facts = [{"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 2}, last]
    ends = together(lambda index: distributed.check_same(lambda: facts[index], "mend it"))
    assert [str(end) for end in ends] == [message] * 3 and all(isinstance(end, ConfigError) for end in ends)


class Client:
    """Stands for JAX's coordinator when a run ends."""

    def __init__(self, alike):
        self.alike, self.waited = alike, []

    def wait_at_barrier(self, name, milliseconds):
        self.waited.append((name, milliseconds))
        if not self.alike:
            raise RuntimeError("DEADLINE_EXCEEDED: the others did not come\nto the barrier")


@pytest.mark.parametrize(("code", "seconds"), [(0, distributed.PATIENCE), (75, distributed.PATIENCE), (1, 10)])
def test_processes_that_end_alike_part_in_peace(monkeypatch, code, seconds):
    client, parted = Client(alike=True), []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: parted.append(True))
    monkeypatch.setattr(distributed, "_coordinator", lambda: client)
    assert distributed.shutdown(code) == code and parted == [True]
    assert client.waited == [(f"anysat/end/{code}", seconds * 1000)]


@pytest.mark.parametrize(("code", "expected"), [(0, 1), (1, 1), (75, 75)])
def test_where_they_do_not_the_process_is_gone_at_once(monkeypatch, code, expected):
    class Gone(BaseException):
        pass

    def exit_now(code):
        raise Gone(code)

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "_coordinator", lambda: Client(alike=False))
    monkeypatch.setattr(distributed.os, "_exit", exit_now)
    with pytest.raises(Gone, match=str(expected)):
        distributed.shutdown(code)


def test_a_process_that_was_stopped_lets_the_others_know_and_ends_at_once(monkeypatch, together):
    client, ended = Client(alike=True), []
    client.key_value_set = lambda *key, allow_overwrite: client.waited.append(key)
    connected = threading.Event()
    monkeypatch.setattr(distributed, "CONNECTED", connected)
    assert distributed.shutdown(75, stopped=True) == 75 and not client.waited  # alone, or not connected yet
    connected.set()
    monkeypatch.setattr(distributed, "_coordinator", lambda: client)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(distributed.os, "_exit", ended.append)
    distributed.shutdown(75, stopped=True)
    assert ended == [75] and client.waited == [(distributed.LEFT, "yes"), ("anysat/end/stopped", 10_000)]


def test_who_saves_ends_with_the_others_only_once_one_has_left(monkeypatch):
    coordinator, connected = Coordinator(), threading.Event()
    monkeypatch.setattr(distributed, "_coordinator", lambda: coordinator)
    monkeypatch.setattr(distributed, "CONNECTED", connected)
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def ends():
        return [distributed.others_end(saving) for saving in (False, True)]

    connected.set()
    assert ends() == [False, False]
    coordinator.key_value_set(distributed.STOP_NOTICE, "now")
    assert ends() == [True, False]
    coordinator.key_value_set(distributed.LEFT, "yes")
    assert ends() == [True, True]
    connected.clear()
    assert ends() == [False, False]


def test_the_connections_of_every_group_of_axes_are_opened(monkeypatch):
    met = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "agree", lambda work: met.append(True) or work())
    distributed.warm_up_collectives(
        jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    )
    assert met == [True]
