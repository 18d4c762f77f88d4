"""Real runs as files: what the kernel emitted, and what was known of the machine. `tests/unit/record.py` writes them."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from tracer.journey.assemble import Assembler
from tracer.model.journey import Journey
from tracer.model.layout import Event
from tracer.model.probes import Batch, HookPoint, Machine, Trace
from tracer.model.ruleset import Ruleset
from tracer.model.selection import Selection
from tracer.model.topology import Topology

FOLDER = Path(__file__).parent / "recorded"


@dataclasses.dataclass(frozen=True)
class Recording:
    selection: Selection
    topology: Topology
    target: int | None  # namespace of the destination
    reasons: dict[int, str]
    hook_points: list[HookPoint]
    clock_offset_ns: int
    answered: list[int]
    sent: list[list[int]]  # (CLOCK_MONOTONIC ns, seq)
    events: list[Event]
    names: dict[str, str]  # devices whose names are made up anew for each lab -> steady ones
    traces: list[Trace] = dataclasses.field(default_factory=list)
    untraced: dict[int, str] | None = None
    attached: list[str] = dataclasses.field(default_factory=list)  # names of probes

    @property
    def machine(self) -> Machine:
        return Machine("6.18", self.clock_offset_ns, self.reasons, tuple(self.attached),
                       hook_points={(p.netns, p.hook, p.slot): p for p in self.hook_points}, untraced=self.untraced)

    def assembler(self) -> Assembler:
        machine = self.machine
        assembler = Assembler(self.selection, self.topology, lambda: machine, self.target)
        for when, seq in self.sent:
            assembler.sent(seq, when)
        assembler.feed(Batch(self.events, 0, tuple(self.traces)))
        for seq in self.answered:
            assembler.answered(seq)
        return assembler

    def journeys(self) -> list[Journey]:
        return self.assembler().rest()

    def way(self, journey: Journey) -> list[str]:
        """`node device stage` of each hop, with steady names."""
        return [" ".join((hop.node, self.names.get(hop.device or "-", hop.device or "-"), hop.stage.value))
                for hop in journey.hops]

    def steady(self, text: str) -> str:
        for name, instead in self.names.items():
            text = text.replace(name, instead)
        return text


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as `topo` reads it."""

    topology: Topology
    rulesets: list[Ruleset]
    names: dict[str, str]  # made up anew for each engine -> steady ones


def load_network() -> Network:
    text = (FOLDER / "networks.json").read_text()
    for name, instead in json.loads(text)["names"].items():
        text = text.replace(name, instead)
    network: Network = _typed(json.loads(text), Network)
    return network


def save(name: str, recording: Recording | Network) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(_plain(recording), separators=(",", ":")) + "\n")


def load(name: str) -> Recording:
    recording: Recording = _typed(json.loads((FOLDER / f"{name}.json").read_text()), Recording)
    return recording


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.rstrip(b"\0").hex() + f"+{len(value) - len(value.rstrip(bytes(1)))}"
    if isinstance(value, Event):
        return {name: _plain(item) for name, item in value._asdict().items() if name != "padding"} | {"padding": "+0"}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, int | str | float | bool) else str(value)


def _typed(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        for choice in (a for a in arguments if a is not type(None)):
            try:
                return _typed(value, choice)
            except (ValueError, TypeError):
                continue
        raise ValueError(value)
    if origin is tuple:
        return tuple(_typed(item, arguments[0]) for item in value)
    if origin is list:
        return [_typed(item, arguments[0]) for item in value]
    if origin is not None and issubclass(origin, Mapping):
        return {arguments[0](key): _typed(item, arguments[1]) for key, item in value.items()}
    if kind is bytes:
        text, _, zeros = value.partition("+")
        return bytes.fromhex(text) + bytes(int(zeros))
    if kind is Event:
        hints = typing.get_type_hints(Event)
        return Event(**{name: _typed(item, hints[name]) for name, item in value.items()})
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{key: _typed(item, hints[key]) for key, item in value.items()})
    if kind is int and not isinstance(value, int):
        raise TypeError(value)
    return kind(value)
