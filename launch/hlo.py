"""Collectives and memory traffic of a compiled program, read from its HLO text.

XLA's `cost_analysis` counts the body of a loop once and leaves collectives out. Here each instruction counts as often
as it runs: a loop's trip count is the constant that its counter is compared with.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SHARED_CHANNEL = "1"  # of all collectives that shard_map makes
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("custom-call", "partition-id", "replica-id", "opt-barrier", "iota", "broadcast", "domain"),
}
"""Instructions without traffic of their own; their callees are counted."""
_BITS = {"pred": 8, "bf16": 16, "f16": 16}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*-> .*\{$")
_BRACKETS = re.compile(r"[()]")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Messages of one kind within groups of one size."""

    kind: str  # one of `COLLECTIVES`
    group: int  # number of chips that take part in one of them
    count: int  # number in a step
    size: float  # bytes of all their arrays, gathered or reduced

    @property
    def sent(self) -> float:
        """Bytes sent by each chip in a ring."""
        fraction = (self.group - 1) / self.group
        return self.size * {"all-reduce": 2 * fraction, "collective-permute": 1.0}.get(self.kind, fraction)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: `name = shape kind(operands), rest`."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    def attribute(self, key: str) -> str | None:
        """Returns the name after "key=", such as the body of a loop."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program."""

    computations: dict[str, Computation]  # by name; each maps names to instructions
    entry: str  # name of the first to run

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Parses `compiled.as_text()`."""
        computations: dict[str, Computation] = {}
        entry, current = "", {}
        for line in text.splitlines():
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
            elif one := _instruction(line):
                current[one.name] = one
        return cls(computations, entry)

    @functools.cached_property
    def times(self) -> dict[str, int]:
        """Number of runs of each computation, by name, without those inside fusions and reductions."""
        times: collections.Counter[str] = collections.Counter()
        waiting = [(self.entry, 1)]
        while waiting:
            name, count = waiting.pop()
            times[name] += count
            for one in self.computations[name].values():
                waiting += [(callee, count * trips) for callee, trips in self._callees(one)]
        return dict(times)

    def _callees(self, one: Instruction) -> Iterator[tuple[str, int]]:
        if one.kind == "while":
            # The trip count is the constant that the loop's counter is compared with; 1 without one.
            condition = self.computations[one.attribute("condition")].values()
            constants = [other.operands[0] for other in condition if other.kind == "constant"]
            yield one.attribute("body"), max((int(text) for text in constants if text.isdigit()), default=1)
        elif one.kind == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
            for name in re.findall(r"%?([\w.\-]+)", branches[1]) if branches else ():
                yield name, 1
        elif one.kind in ("call", "async-start"):
            yield one.attribute("to_apply") or one.attribute("calls"), 1

    def collectives(self) -> list[Collective]:
        """Returns the messages between chips in one run, summed by kind and group size."""
        found: dict[str, tuple[Instruction, int]] = {}
        for name, times in self.times.items():
            for one, fused in self._with_fused(name):
                if _kind(one) in COLLECTIVES:
                    found[_identity(one, fused)] = (one, times)
        sums: dict[tuple[str, int], tuple[int, float]] = {}
        for one, times in found.values():
            key = (_kind(one), _group_size(one))
            count, size = sums.get(key, (0, 0.0))
            sums[key] = (count + times, size + times * _payload(one, key[1]))
        return [Collective(*key, *value) for key, value in sorted(sums.items()) if key[1] > 1]

    def _with_fused(self, name: str, fused: bool = False) -> Iterator[tuple[Instruction, bool]]:
        """Yields a computation's instructions and those of its fusions, and whether they are in a fusion."""
        for one in self.computations[name].values():
            yield one, fused
            if one.kind == "fusion" and (inner := one.attribute("calls")) in self.computations:
                yield from self._with_fused(inner, fused=True)

    def memory_traffic(self) -> float:
        """Returns the bytes that one run reads from and writes to a chip's main memory.

        Arrays in faster memory, S(1) in HLO, count where they are loaded. A fusion that takes a slice of an array reads
        that slice; one that updates a slice in place writes it.
        """
        total = 0.0
        for name, times in self.times.items():
            computation = self.computations[name]
            total += times * sum(self._traffic(one, computation) for one in computation.values())
        return total

    def _traffic(self, one: Instruction, computation: Computation) -> float:
        if one.kind in ("copy-done", "slice-done", "dynamic-slice-done"):
            source = computation[computation[one.operands[0]].operands[0]].shape
            return _total_bytes(one.shape) * (("S(" not in one.shape) + ("S(" not in source))
        if one.kind in _FREE or one.kind.endswith(("-start", "-done")):
            return 0.0
        if one.kind == "fusion":
            return self._fusion_traffic(one, computation)
        if one.kind == "dynamic-slice":
            return 2.0 * _main_bytes(one.shape)
        if one.kind == "dynamic-update-slice":
            return 2.0 * _main_bytes(computation[one.operands[1]].shape)
        return _main_bytes(one.shape) + sum(
            _main_bytes(computation[name].shape) for name in one.operands if name in computation
        )

    def _fusion_traffic(self, one: Instruction, computation: Computation) -> float:
        inner = self.computations[one.attribute("calls")]
        parameters = {int(i.operands[0]): i.name for i in inner.values() if i.kind == "parameter"}
        total = 0.0
        for place, operand in enumerate(one.operands):
            if operand in computation and _main_bytes(computation[operand].shape):
                total += _read(parameters[place], inner, _main_bytes(computation[operand].shape))
        root = next(i for i in inner.values() if i.root)
        if root.kind == "dynamic-update-slice":
            return total + _main_bytes(inner[root.operands[1]].shape)
        return total + _main_bytes(one.shape)


def _read(parameter: str, inner: Computation, whole: float) -> float:
    # A fusion may need only slices of what it is given, or write a slice in place and read nothing.
    users = [one for one in inner.values() if parameter in one.operands]
    if not users or any(one.operands[0] != parameter for one in users):
        return whole
    if all(one.kind == "dynamic-slice" for one in users):
        return float(sum(_total_bytes(one.shape) for one in users))
    return 0.0 if all(one.kind == "dynamic-update-slice" for one in users) else whole


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if match is None:
        return None
    start = match.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    call = re.match(r"\s*([\w\-]+)\(", line[end:])
    if call is None:
        return None
    opening = end + call.end() - 1
    closing = _closing(line, opening)
    inside = re.sub(r"/\*.*?\*/", "", line[opening + 1 : closing])
    operands = tuple(part.strip().split(" ")[-1].lstrip("%") for part in inside.split(",")) if inside else ("",)
    return Instruction(match[2], line[start:end], call[1], operands, line[closing + 1 :], bool(match[1]))


def _closing(line: str, opening: int) -> int:
    """Returns the index of the bracket that closes the one at `opening`."""
    depth = 0
    for bracket in _BRACKETS.finditer(line, opening):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return bracket.start()
    return len(line) - 1


def _kind(one: Instruction) -> str:
    return one.kind.removesuffix("-start")


def _identity(one: Instruction, fused: bool) -> str:
    # XLA may split a collective over several fusions: it is in each of them, on one channel.
    channel = re.search(r"channel_id=(\d+)", one.rest)
    if channel and channel[1] != SHARED_CHANNEL:
        return channel[1]
    if channel is None or not fused:
        return one.name
    made_by = re.search(r'op_name="([^"]*)"', one.rest)
    return f"{one.kind} {_payload(one, 1)} {made_by and made_by[1]}"


def _payload(one: Instruction, group: int) -> float:
    """Returns the bytes of the whole array that is gathered or reduced."""
    shapes = list(_ARRAY.finditer(one.shape))
    if one.kind in ("all-gather-start", "collective-permute-start"):  # (operands, results, ...)
        shapes = shapes[len(one.operands) : 2 * len(one.operands)]
    size = float(sum(_bytes(shape) for shape in shapes))
    return size * group if _kind(one) == "reduce-scatter" else size


def _group_size(one: Instruction) -> int:
    """Returns the chips in a group; HLO has a mesh with named axes, [groups,size]<=[...], or lists."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", one.rest):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sides[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", one.rest):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", one.rest):
        return len(listed[1].split(","))
    return 2 if _kind(one) == "collective-permute" else 1


def _bytes(array: re.Match[str]) -> float:
    kind, sides = array[1], array[2]
    bits = _BITS.get(kind) or int((re.search(r"\d+", kind) or ["0"])[0])
    return bits / 8 * math.prod(int(side) for side in sides.split(",") if side)


def _total_bytes(shape: str) -> float:
    return sum(_bytes(array) for array in _ARRAY.finditer(shape))


def _main_bytes(shape: str) -> float:
    # The layout of an array in another memory space, as a TPU's fast memory, ends in S(number).
    return sum(_bytes(array) for array in _ARRAY.finditer(shape) if "S(" not in (array[3] or ""))
