"""Several processes as one run: initialisation, agreement on values and errors, shutdown.

Messages go through JAX's coordinator in the first process and not through the devices: late processes are waited for,
and dead ones are detected.
"""

import ipaddress
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from anysat_jax.errors import ConfigError, Preempted
from anysat_jax.train.config import flatten

VARIABLE = "ANYSAT_PROCESSES"  # environment variable with the default of --processes
PATIENCE = 7 * 24 * 3600  # seconds; preparing a dataset may take days in one process, and the others wait
TURN = 500  # milliseconds of a call of C, after each of which Python handles signals
STOP_NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # key under which JAX's coordinator keeps the time of the first SIGTERM
LEFT = "anysat/left"  # key that a process which ends outside its step loop sets
FAILURE_PATIENCE = 10  # seconds that a process that failed or was stopped waits for the others to end, too
CONNECTING = 300  # seconds that the processes wait for each other at the start, JAX's default
CONNECTED = threading.Event()  # from `start` to `shutdown`
_POLLING = threading.Lock()  # JAX aborts a process whose thread asks the coordinator while the connection is closed
T = TypeVar("T")
_ROUNDS = itertools.count()  # all processes make the same calls in the same order: numbers pair them


def start(processes: str) -> None:
    """Joins the other processes of the run; to be called before JAX is first used.

    Args:
      processes: "" for a process on its own; "auto" if JAX can find the others by itself: on Cloud TPUs, under SLURM,
        Open MPI, or as an indexed Kubernetes job; else "HOST:PORT,COUNT,INDEX": the address of the first process, the
        number of processes, and the index of this one, from 0.

    Raises:
      ConfigError: `processes` is none of these, or the processes did not find each other.
    """
    if not processes:
        return
    by_hand = {} if processes == "auto" else parse(processes)
    coordinator = by_hand.get("coordinator_address", "the coordinator")
    logging.info("waiting for the other processes at %s, at most %d s", coordinator, CONNECTING)
    try:
        # JAX would look for an unknown host until its time is over. In Kubernetes, the first pod's gets known later.
        if by_hand and "KUBERNETES_SERVICE_HOST" not in os.environ:
            socket.getaddrinfo(coordinator.rpartition(":")[0].strip("[]"), None)
        jax.distributed.initialize(**by_hand, initialization_timeout=CONNECTING)
        CONNECTED.set()
        local, total = jax.local_device_count(), jax.device_count()
        warm_up_collectives(Mesh(np.array(jax.devices()).reshape(jax.process_count(), -1), ("process", "device")))
    except (ValueError, RuntimeError, socket.gaierror) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        why = "the processes did not find each other"
        remedy = "start all of them, with one COUNT and an address of the first one that every machine can reach"
        if processes == "auto" and isinstance(error, ValueError):
            why = "neither a Cloud TPU, nor SLURM, Open MPI or an indexed Kubernetes job was found here"
            remedy = "give HOST:PORT,COUNT,INDEX"
        raise ConfigError(f"--processes={processes}: {why} ({reason}); {remedy}") from error
    logging.info("process %d of %d, with %d of %d devices", jax.process_index(), jax.process_count(), local, total)


def warm_up_collectives(mesh: Mesh) -> None:
    """Opens the connections of all later collectives over axes of a mesh, while all processes are at the same place."""
    # Opened later, CPUs would wait only 30 s for each other, less than one of them may compile for. Accelerators
    # connect by themselves.
    if jax.process_count() == 1 or jax.default_backend() != "cpu":
        return
    names = mesh.axis_names
    groups = [some for count in range(len(names)) for some in itertools.combinations(names, count + 1)]

    def sums(ones: jax.Array) -> list[jax.Array]:
        return [jax.lax.psum(ones, some) for some in groups]

    where = PartitionSpec(*names)
    # A connection belongs to a group of devices: one sum for each set of axes, by one program that all compile first.
    kept = [PartitionSpec(*(None if name in some else name for name in names)) for some in groups]
    sharding, shape = NamedSharding(mesh, where), mesh.devices.shape
    ones = jax.make_array_from_callback(shape, sharding, lambda _: np.ones((1,) * len(names), np.float32))
    lowered = jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=where, out_specs=kept)).lower(ones)
    jax.block_until_ready(agree(lowered.compile)(ones))


def parse(processes: str) -> dict[str, Any]:
    """Returns the arguments of `jax.distributed.initialize` from "HOST:PORT,COUNT,INDEX".

    Raises:
      ConfigError: it has another form, or there is no process of that index.
    """
    match = re.fullmatch(r"(\S+:(\d+)),(\d+),(\d+)", processes)
    if match is None or int(match[2]) > 65535:
        raise ConfigError(
            f"--processes={processes} must be 'auto' or HOST:PORT,COUNT,INDEX: where the first process listens "
            "(ports end at 65535), how many there are, and which one this is, such as 10.0.0.2:8476,4,0"
        )
    address, count, index = match[1], int(match[3]), int(match[4])
    if index >= count:
        raise ConfigError(f"--processes={processes}: of {count} processes the last has index {count - 1}, not {index}")
    found = dict(coordinator_address=address, num_processes=count, process_id=index)
    # By default the coordinator would listen on all addresses of the machine, also those of other networks.
    return found | ({"coordinator_bind_address": address} if _is_here(address.rpartition(":")[0]) else {})


def _is_here(host: str) -> bool:
    """Returns whether a host is "localhost" or an IP address of this machine."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET) as probe:
            probe.bind((str(address), 0))
    # A name may have another address on other machines; an address that cannot be bound is that of a gateway (NAT), or
    # this process is on another machine than the first.
    except (ValueError, OSError):
        return False
    return True


def shutdown(code: int, *, stopped: bool = False) -> int:
    """Leaves the run at its end. The other processes wait for the first one, which may still be reporting.

    If they do not all end with the same code, this does not return: the process exits at once, its coordinator notifies
    the others within two minutes, and these end too.

    Args:
      code: of this process' exit, which is returned; 1, a failure, is not waited for.
      stopped: whether a signal ended it outside the step loop: the others follow, and this does not return.
    """
    if not (CONNECTED.is_set() if stopped else jax.distributed.is_initialized()):
        return code
    try:
        if stopped:
            _coordinator().key_value_set(LEFT, "yes", allow_overwrite=True)
        patience = FAILURE_PATIENCE if code == 1 or stopped else PATIENCE
        # The code is part of the barrier's name: processes that end differently do not meet.
        _coordinator().wait_at_barrier(f"anysat/end/{'stopped' if stopped else code}", patience * 1000)
        if not stopped:
            with _POLLING:
                CONNECTED.clear()
            jax.distributed.shutdown()
            return code
        if jax.process_index() == 0:
            time.sleep(1)  # the others would abort without their coordinator
    except RuntimeError as error:
        logging.warning("not all processes ended alike: %s", (str(error) or "no reason given").splitlines()[0][:200])
    exit_now(code or 1)  # sys.exit would run JAX's own shutdown, which waits for the others


def exit_now(code: int) -> NoReturn:
    """Ends the process without waiting for threads or other processes."""
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stop_noticed(key: str = STOP_NOTICE) -> bool:
    """Returns whether one of several processes received SIGTERM, a second ago or earlier; with `LEFT`: has left."""
    try:
        return jax.process_count() > 1 and bool(_coordinator().key_value_try_get(key))
    except RuntimeError:  # there is no such key
        return False


def others_end(saving: bool) -> bool:
    """Returns whether this process must end with the others: after a signal, or if it is saving, once one has left."""
    with _POLLING:
        return CONNECTED.is_set() and (stop_noticed(LEFT) or (not saving and stop_noticed()))


def agree(work: Callable[[], T]) -> T:
    """Runs `work`, which may fail in one process only, such as reading its data; a failure in one is raised in all.

    Raises:
      ConfigError: it failed in another process; the message names the process, its host and the reason.
      Preempted: the same, after one of the processes received SIGTERM.
    """
    if jax.process_count() == 1:
        return work()
    try:
        result = work()
    except Exception as error:  # the others wait for this one's answer: without it they would hang
        _decide(str(error) or type(error).__name__, _first_problem)
        raise
    if problem := _decide(None, _first_problem):
        raise (Preempted if stop_noticed() else ConfigError)(problem)
    return result


def check_same(facts: Callable[[], Mapping[str, Any]], remedy: str) -> None:
    """Checks that all processes have the same values: `facts` returns JSON values, perhaps nested.

    Raises:
      ConfigError: a value differs; the message names it and two processes with their hosts, and ends in `remedy`.
    """
    if jax.process_count() == 1:
        return
    if found := _decide(flatten(facts()), _first_difference):
        raise ConfigError(f"{found}; {remedy}")


def _decide(value: Any, judge: Callable[[list[Any], list[str]], str]) -> str:
    """Gathers one value per process, applies `judge` in process 0, and returns its result in all."""
    # Through the coordinator, not by a collective: values are texts of any length, and no device need be ready.
    coordinator, place = _coordinator(), f"anysat/{next(_ROUNDS)}"
    coordinator.key_value_set(f"{place}/{jax.process_index()}", json.dumps([value, socket.gethostname()]))
    if jax.process_index() == 0:
        gathered = [json.loads(_wait_for(f"{place}/{index}")) for index in range(jax.process_count())]
        values, hosts = zip(*gathered, strict=True)
        names = [f"process {index} ({host})" for index, host in enumerate(hosts)]
        coordinator.key_value_set(f"{place}/judgement", json.dumps(judge(list(values), names)))
    return json.loads(_wait_for(f"{place}/judgement"))


def _first_problem(problems: list[str | None], names: list[str]) -> str:
    """Returns the first problem with its process; "" if there is none."""
    found = [(name, problem) for name, problem in zip(names, problems, strict=True) if problem]
    if not found:
        return ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[0][0]}{more} of {len(names)} cannot go on: {found[0][1]}"


def _first_difference(facts: list[dict[str, Any]], names: list[str]) -> str:
    """Returns the first value that differs from that of the first process; "" if none does."""
    for key in sorted({key for one in facts for key in one}):
        for name, one in zip(names, facts, strict=True):
            if one.get(key) != facts[0].get(key):
                return f"{key} is {facts[0].get(key)!r} in {names[0]} and {one.get(key)!r} in {name}"
    return ""


def _coordinator() -> Any:
    import orbax.checkpoint as ocp  # takes seconds, which a single process should not spend

    return ocp.multihost.get_jax_distributed_client()


def _wait_for(place: str) -> str:
    while True:
        try:
            return _coordinator().blocking_key_value_get(place, TURN)
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
