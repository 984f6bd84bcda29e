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
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

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
FAILURE_PATIENCE = 10  # seconds that a process that failed waits for the others to fail, too
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
    try:
        jax.distributed.initialize(**by_hand)
        local, total = jax.local_device_count(), jax.device_count()
        warm_up_collectives(Mesh(np.array(jax.devices()).reshape(jax.process_count(), -1), ("process", "device")))
    except (ValueError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        why = (
            f"the processes did not find each other ({reason}); start all of them, with the same COUNT and with an "
            "address of the first one that every machine can reach"
        )
        if processes == "auto" and isinstance(error, ValueError):
            why = (
                f"neither a Cloud TPU, nor SLURM, Open MPI or an indexed Kubernetes job was found here ({reason}); "
                "give HOST:PORT,COUNT,INDEX"
            )
        raise ConfigError(f"--processes={processes}: {why}") from error
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


def shutdown(code: int, failed: int = 1) -> int:
    """Leaves the run at its end. The other processes wait for the first one, which may still be reporting.

    If they do not all end with the same code, this does not return: the process exits at once, its coordinator notifies
    the others within two minutes, and these end too.

    Args:
      code: of this process' exit, which is returned.
      failed: the code of a failure, which is not waited for.
    """
    if not jax.distributed.is_initialized():
        return code
    try:
        patience = FAILURE_PATIENCE if code == failed else PATIENCE
        # The code is part of the barrier's name: processes that end differently do not meet.
        _coordinator().wait_at_barrier(f"anysat/end/{code}", patience * 1000)
        jax.distributed.shutdown()
    except RuntimeError as error:
        logging.warning("not all processes ended alike: %s", (str(error) or "no reason given").splitlines()[0][:200])
        logging.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or failed)  # sys.exit would run JAX's own shutdown, which waits for the others
    return code


def stop_noticed() -> bool:
    """Returns whether one of several processes received SIGTERM, about a second ago or earlier."""
    if jax.process_count() == 1:
        return False
    try:
        return bool(_coordinator().key_value_try_get(STOP_NOTICE))
    except RuntimeError:  # there is no such key
        return False


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
