"""A journey in one line: who to whom, which packet, the devices in order, and how it ended.

Made by hand, without rich: a busy host has thousands of them a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from rich.cells import cell_len
from rich.console import Console

from tracer.model.journey import Journey, Packet, Result, Rewrite, Stage, endpoint
from tracer.render import copies as copied, words
from tracer.render.alphabet import Alphabet
from tracer.render.styles import DIM, NAME, RESULT, REWRITE, ROLE, WARNING

Piece = tuple[str, str]  # text and style

_ROOM_FOR_TIME = 100  # columns
_ON_THE_WIRE = (Stage.EGRESS, Stage.INGRESS, Stage.L2_FORWARD, Stage.L2_FLOOD, Stage.L2_LOCAL)
_WHOLE = 3  # so many of _ways() have all devices
_CACHED = 4096  # texts


class Lines:
    """Makes the lines of journeys for a console: without width in a pipe, else so that they fit if they can.

    What does not fit goes in this order: the time of day, the names of veths, devices that are no bridge and translated
    nothing, all devices. Who sent it, to whom, what became of it and why are never left out; what died says that in a line
    of its own rather than lose its way.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._show = lru_cache(_CACHED)(Alphabet(console.encoding).show)
        self._codes: dict[str, tuple[str, str]] = {"": ("", "")}
        self._second, self._clock = -1, ""
        self.width = console.width if console.is_terminal else None

    def of(self, journey: Journey, copies: Sequence[Journey] = ()) -> str:
        """One line, and below it what stopped the packet, its cause and mend, each where there is one."""
        when = [(f"{self._time(journey.wall_ns)} ", DIM)] if self.width is None or self.width >= _ROOM_FOR_TIME else []
        head, end, rule = [*when, *_head(journey)], _end(journey, copies), _rule(journey)
        died = journey.end.result in (Result.DROPPED, Result.UNKNOWN)
        way = self._fitting(journey, [*head, *end, *rule], whole=died)
        lines = [[*head, *(way or ()), *end, *rule]]
        if way is None and died:
            lines = [[*head, *(self._fitting(journey, head) or ())], [*end, *rule]]
            if rule and self.wide(lines[1]) > (self.width or 0):
                lines[1:] = [end, [(" ", ""), *rule]]
        return "\n".join(map(self.paint, (*lines, *_causes(journey)))) + "\n"

    def _fitting(self, journey: Journey, beside: Sequence[Piece], whole: bool = False) -> list[Piece] | None:
        """As much of the way as there is room for; None: nothing fits. `whole`: with all devices."""
        ways = _ways(journey)
        if self.width is None:
            return next(ways)
        room = self.width - self.wide(beside)
        return next((way for way in islice(ways, _WHOLE if whole else None) if self.wide(way) <= room), None)

    def paint(self, pieces: Sequence[Piece]) -> str:
        """With the console's escape sequences for the styles. All text goes through the alphabet."""
        made = []
        for text, style in pieces:
            before, after = self._codes.get(style) or self._code(style)
            made.append(f"{before}{self._show(text)}{after}" if before else self._show(text))
        return "".join(made)

    def _code(self, style: str) -> tuple[str, str]:
        with self._console.capture() as capture:
            self._console.print("x", style=style, end="", highlight=False)
        before, _, after = capture.get().partition("x")
        self._codes[style] = before, after
        return before, after

    def wide(self, pieces: Sequence[Piece]) -> int:
        """In columns."""
        return cell_len("".join(self._show(text) for text, _ in pieces))

    def _time(self, wall_ns: int) -> str:
        """As tcpdump has it: local time, microseconds."""
        second, rest = divmod(wall_ns, 1_000_000_000)
        if second != self._second:
            self._second, self._clock = second, time.strftime("%H:%M:%S", time.localtime(second))
        return f"{self._clock}.{rest // 1000:06}"


def packet_name(packet: Packet) -> str:
    """As short as it can be told: "SYN", "1448 B", "UDP 64 B", "echo request", "ARP who-has 172.17.0.3"."""
    size = f"{packet.length if packet.payload is None else packet.payload} B"
    if packet.proto == "tcp" and packet.tcp_flags:
        flags = [flag for flag in packet.tcp_flags.split() if flag != "PSH"]
        if not packet.payload:
            return " ".join(flags)
        return " ".join([flag for flag in flags if flag != "ACK"] + [size])
    if packet.proto in ("tcp", "udp"):
        return f"{packet.proto.upper()} {size}"
    if packet.asked and packet.proto == "arp":
        return f"ARP {packet.asked} is-at {packet.told}" if packet.told else f"ARP who-has {packet.asked}"
    if packet.proto.isdecimal():
        return f"protocol {packet.proto} {size}"
    about = packet.quoted
    if about is None:
        return words.packet_name(packet) + (f" {packet.asked}" if packet.asked else "")
    return f"{words.packet_name(packet)} (about {about.proto.upper()} to {endpoint(about.dst, about.dport)})"


def ends(journey: Journey) -> tuple[str, str]:
    """Who sent it, and whom it is for, with the port of the side that serves: the other's is of that connection alone."""
    packet = journey.packet
    (source, target), sport, dport = words.ends(journey), packet.sport, packet.dport
    if sport is None or dport is None:
        return source, target
    if journey.kind == "reply" or (journey.kind != "request" and sport < dport):
        return endpoint(source, sport), target
    return source, endpoint(target, dport)


def _head(journey: Journey) -> list[Piece]:
    source, target = ends(journey)
    return [(source, NAME), (" → ", ""), (target, NAME),
            (f" {packet_name(journey.packet)}{words.KINDS.get(journey.kind, '')}", ""),
            *([(f" ({journey.problem})", WARNING)] if journey.problem == "retransmission" else [])]


@dataclass(slots=True)
class _Stop:
    """A device that the packet came by, and what happened there."""

    node: str  # "c2:", or "" where it goes without saying
    device: str
    inferred: bool
    roles: list[Piece] = field(default_factory=list)
    rewrites: list[Piece] = field(default_factory=list)

    def pieces(self, veth: str | None = None) -> list[Piece]:
        """`veth`: stands for the name of any veth."""
        device = veth if veth and self.device.startswith("veth") else self.device
        made = [(f"{'~' if self.inferred else ''}{self.node}{device}", self.roles[0][1] if self.roles else "")]
        for nth, (role, style) in enumerate(self.roles):
            made += [("(" if nth == 0 else ", ", ""), (role, style)]
        made += [(")", "")] if self.roles else []
        return made + [(f" {text}", style) for text, style in self.rewrites]


def _way(journey: Journey) -> list[_Stop]:
    """Where devices send and receive, bridges with their roles. A netfilter hook tells of a device that was not seen so, a
    route lookup only of the first. The host, and where it begins and is to end, go without saying, but between two devices
    of one name."""
    stops: list[_Stop] = []
    met: set[tuple[str, str]] = set()
    last = ("", "")
    for hop in journey.hops:
        place = (hop.node, hop.device or "")
        if place[1] and (hop.stage in _ON_THE_WIRE or (place not in met if hop.stage in words.NETFILTER else not stops)):
            if place != last:
                plain = hop.node in ("host", journey.hops[0].node, journey.target) and hop.device != last[1]
                stops.append(_Stop("" if plain else f"{hop.node}:", place[1], hop.inferred))
                met.add(place)
                last = place
            if hop.role:
                role = (("~" if hop.inferred and not stops[-1].inferred else "") + hop.role.value, ROLE[hop.role])
                if role not in stops[-1].roles:
                    stops[-1].roles.append(role)
        if hop.rewrite and stops:
            stops[-1].rewrites.append((rewritten(hop.rewrite), REWRITE))
    return stops


def _ways(journey: Journey) -> Iterator[list[Piece]]:
    """The way at length, then shorter and shorter."""
    stops = _way(journey)
    yield _joined([stop.pieces() for stop in stops])
    yield _joined([stop.pieces("veth…") for stop in stops])
    yield _joined([stop.pieces("…") for stop in stops])
    for shorter in ([stop for stop in stops if stop.roles or stop.rewrites], [stop for stop in stops if stop.roles]):
        yield _joined([stop.pieces("…") for stop in shorter])


def _joined(stops: Sequence[Sequence[Piece]]) -> list[Piece]:
    made: list[Piece] = []
    for stop in stops:
        made += [(" ▸ " if made else "  ", ""), *stop]
    return made


def rewritten(rewrite: Rewrite) -> str:
    """"src→198.51.100.2", "dst→172.17.0.3:80"."""
    said = []
    for name, address, port in (("src", rewrite.src, rewrite.sport), ("dst", rewrite.dst, rewrite.dport)):
        if address:
            said.append(f"{name}→{endpoint(address[1], port[1] if port else None)}")
        elif port:
            said.append(f"{name[0]}port→{port[1]}")
    return " ".join(said)


def _end(journey: Journey, copies: Sequence[Journey]) -> list[Piece]:
    end, took = journey.end, words.spelled(journey.duration_ns)
    if end.result is Result.DELIVERED:
        said = f"delivered {took}" if journey.target else f"taken in by {end.node} {took}"
    elif end.result is Result.LEFT:
        said = f"left by {end.device} {took}" if end.device else f"left this host {took}"
    elif end.result is Result.RELAYED:
        said = f"relayed to a proxy {took}"
    else:
        said = words.died(journey)
    made = [("  ", ""), (f"~{said}" if end.inferred else said, RESULT[end.result])]
    if copies:
        made.append((f"  + {copied.count_of(copies)}", ""))
    if journey.lost_events:
        made.append((f"  ! {words.count(journey.lost_events, 'event')} lost", WARNING))
    elif not journey.complete:
        made.append(("  ! a hop may be missing", WARNING))
    return made


def _rule(journey: Journey) -> list[Piece]:
    rule = journey.end.rule
    return [(f" {rule.rule}", RESULT[journey.end.result])] if rule and rule.rule else []


def _causes(journey: Journey) -> list[list[Piece]]:
    """The first cause, and its mend in the same line."""
    cause = next((cause for cause in journey.end.causes if not cause.remark), None)
    if cause is None:
        return []
    mend = [("  mend: ", NAME), (cause.mend, "")] if cause.mend else []
    return [[("  cause: ", NAME), (cause.sentence, ""), *mend]]
