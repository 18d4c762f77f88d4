"""What `dnettrace doctor` finds on a machine, and what follows from it for each command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from tracer.model.probes import Missing


@dataclass(frozen=True, slots=True)
class Tried:
    """A mechanism that was loaded, attached and closed."""

    name: str
    works: bool | None  # None: it could not be tried
    why: str = ""  # not


@dataclass(frozen=True, slots=True)
class Trial:
    """What the kernel lets dnettrace do."""

    mechanisms: tuple[Tried, ...]
    attached: tuple[str, ...] = ()  # probes of the catalogue, by the best mechanism that works
    missing: tuple[Missing, ...] = ()
    untraced: str | None = None  # why nftables' rules are not traced
    problem: str | None = None  # why no packet can be followed
    problem_of_streams: str | None = None  # why real traffic cannot


@dataclass(frozen=True, slots=True)
class Part:
    """Software that dnettrace needs."""

    name: str
    version: str | None  # None: it is not there
    package: str  # Debian's name of it
    commands: tuple[str, ...]  # that need it
    lost: str | None = None  # what cannot be shown without; None: the commands cannot run
    why: str = ""  # it is not there, with the mend, where more is known than that


@dataclass(frozen=True, slots=True)
class Rights:
    root: bool
    lacking: tuple[str, ...]  # capabilities that tracing needs
    lockdown: str | None  # "none", "integrity", "confidentiality"; None: this kernel tells of none


@dataclass(frozen=True, slots=True)
class EngineState:
    place: str  # its socket, or its host and port
    name: str | None  # "Docker 20.10.24"; None: it does not answer
    why: str = ""  # not
    chosen: bool = True  # the one that the commands ask
    containers: int = 0  # that run
    unreachable: str = ""  # one of them, whose network namespace cannot be opened from here


@dataclass(frozen=True, slots=True)
class Tables:
    """Packet filters, by who made their rules."""

    iptables: str | None  # what `iptables` says that it is; None: not installed
    rules: Mapping[str, int] = field(default_factory=dict)  # "iptables-nft", "iptables-legacy", "nftables" -> how many
    unread: tuple[str, ...] = ()  # why some could not be counted


@dataclass(frozen=True, slots=True)
class Health:
    """The machine."""

    where: str  # "this host", "the lab's host"
    release: str  # uname -r
    machine: str  # uname -m
    btf: str | None  # why there is none
    parts: tuple[Part, ...]
    rights: Rights
    trial: Trial | None
    untried: str  # why there is no trial
    engines: tuple[EngineState, ...]
    engine_problem: str | None  # why none could be looked for
    wants_engine: bool  # the lab has none
    settings: Mapping[str, str]  # sysctls
    tables: Tables


class State(Enum):
    GOOD = "good"
    LESS = "less"  # something cannot be shown, or is worth a look
    BAD = "bad"
    UNKNOWN = "unknown"  # could not be tried


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: State | None  # None: it is told, not judged
    text: str


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that a command cannot do here."""

    what: str
    why: str
    mend: str
    fatal: bool = False  # the command cannot run at all


@dataclass(frozen=True, slots=True)
class Ability:
    command: str
    lacks: tuple[Lack, ...] = ()

    @property
    def state(self) -> State:
        return State.BAD if any(lack.fatal for lack in self.lacks) else State.LESS if self.lacks else State.GOOD


@dataclass(frozen=True, slots=True)
class Diagnosis:
    version: str  # of dnettrace
    health: Health
    checks: tuple[Check, ...]
    abilities: tuple[Ability, ...]

    @property
    def whole(self) -> bool:
        """`ping` can do all that it does anywhere."""
        return all(ability.state is State.GOOD for ability in self.abilities if ability.command == "ping")
