"""Reading what `dnettrace ping --json` printed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.functional.conftest import Done
from tests.functional.engine import PATIENCE, Engine

Row = dict[str, Any]


@dataclass
class Output:
    start: Row
    journeys: list[Row]
    summary: Row
    done: Done
    names: dict[str, str] = field(default_factory=dict)  # devices with random names -> steady ones

    def of(self, kind: str, seq: int | None = None) -> list[Row]:
        return [j for j in self.journeys if j["kind"] == kind and (seq is None or j["seq"] == seq)]

    def only(self, kind: str, seq: int | None = 1) -> Row:
        found = self.of(kind, seq)
        if PATIENCE > 1:  # before a slow machine is done, a SYN is sent again
            found = found[:1] + [j for j in found[1:] if not _sent_again(j["packet"], found[0]["packet"])]
        assert len(found) == 1, f"{len(found)} journeys of kind {kind}, seq {seq}: {self.done.stdout}"
        return found[0]

    def way(self, journey: Row) -> list[str]:
        """`node device stage role` of each hop; a veth port of the host is `veth>NODE` by what it leads to. Without the
        waiting for a MAC, which a cache decides and not every kernel shows."""
        return [" ".join(filter(None, (hop["node"], self._device(hop), hop["stage"], hop["role"])))
                for hop in journey["hops"] if hop["stage"] != "neighbor"]

    def _device(self, hop: Row) -> str:
        name = hop["device"] or "-"
        if name.startswith("veth") and "peer of " in hop["detail"]:
            return "veth>" + hop["detail"].partition("peer of ")[2].partition(":")[0]
        return name


def _sent_again(packet: Row, before: Row) -> bool:
    return packet["tcp_flags"] == "SYN" and all(packet[name] == before[name] for name in (
        "src", "dst", "sport", "dport", "tcp_flags", "tcp_seq"))


def read(done: Done, status: int | None = 0) -> Output:
    """`status` None: whether all was answered does not matter."""
    expected = (0, 1) if status is None else (status,)
    assert done.returncode in expected, f"status {done.returncode}: {done.stderr or done.stdout}"
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [rows[0]["type"], rows[-1]["type"]] == ["start", "summary"], done.stdout
    return Output(rows[0], [row for row in rows if row["type"] == "journey"], rows[-1], done)


def leaving(source: str, device: str = "eth0") -> list[str]:
    return [f"{source} {device} route", f"{source} {device} output", f"{source} {device} postrouting",
            f"{source} {device} egress", f"host veth>{source} ingress"]


def arriving(target: str, device: str = "eth0") -> list[str]:
    return [f"{target} {device} ingress", f"{target} {device} prerouting", f"{target} - route", f"{target} {device} input",
            f"{target} - deliver"]


def switched(source: str, target: str, bridge: str = "docker0", out: str = "eth0", into: str = "eth0") -> list[str]:
    """The whole way of an echo packet between two containers on one bridge, with br_netfilter."""
    return [*leaving(source, out), f"host {bridge} prerouting", f"host {bridge} l2_forward switch", f"host {bridge} forward",
            f"host {bridge} postrouting", f"host veth>{target} egress", *arriving(target, into)]


def to_host(source: str, bridge: str = "docker0") -> list[str]:
    return [*leaving(source), f"host {bridge} prerouting", f"host {bridge} l2_local nic", "host - route",
            f"host {bridge} input", "host - deliver"]


def from_host(target: str, bridge: str = "docker0") -> list[str]:
    return [f"host {bridge} route", f"host {bridge} output", f"host {bridge} postrouting", f"host {bridge} egress nic",
            f"host {bridge} l2_forward switch", f"host veth>{target} egress", *arriving(target)]


def published(outside: str, target: str) -> dict[str, list[str]]:
    """The way of each segment of a connection from outside to a port that a container publishes, without_hooks() of it."""
    there = without_hooks([
        *leaving(outside)[:4], "host eth0 ingress", "host eth0 prerouting", "host docker0 route", "host eth0 forward",
        "host eth0 postrouting", "host docker0 egress nic", "host docker0 l2_forward switch", f"host veth>{target} egress",
        *arriving(target)], target)
    back = without_hooks([
        *leaving(target), "host docker0 prerouting", "host docker0 l2_local nic", "host eth0 route", "host docker0 forward",
        "host docker0 postrouting", "host eth0 egress", *arriving(outside)], target)
    later = there[1:]  # a connection remembers its route: the sender's from the SYN on, the receiver's once established
    return {"request": there, "reply": back, "ack": later,
            "close": [hop for hop in later if hop != f"{target} - route"]}


def isolated(engine: Engine, source: str, bridge: str, other: str) -> list[str]:
    """From a container to one of another Docker network (on `other`), up to where the engine stops it."""
    way = [*leaving(source), f"host {bridge} prerouting"]
    return way if engine.guards else [*way, f"host {bridge} l2_local nic", f"host {other} route", f"host {bridge} forward"]


def rewrites(journey: Row) -> list[tuple[str, dict[str, list[str]]]]:
    return [(hop["stage"], {k: v for k, v in hop["rewrite"].items() if v}) for hop in journey["hops"] if hop["rewrite"]]


def routes(journey: Row) -> list[tuple[str, str]]:
    return [(hop["node"], hop["detail"]) for hop in journey["hops"] if hop["route"]]


def end(output: Output, kind: str) -> tuple[str, str, str | None]:
    found = output.only(kind)["end"]
    return found["result"], found["node"], found["reason"]


def without_hooks(way: list[str], node: str) -> list[str]:
    """Less the netfilter hooks of this node: they are watched only from when a packet was seen there, which may be between
    two packets of the run."""
    hooks = ("prerouting", "input", "forward", "output", "postrouting")
    return [hop for hop in way if not (hop.startswith(f"{node} ") and hop.split()[2] in hooks)]
