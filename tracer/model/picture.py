"""The network as people draw it on paper, and the tables that they collect beside it: what outputs of `topo` are given."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.model.journey import Cause
from tracer.model.topology import Address, EngineNetwork, Link, LinkKey, Published


@dataclass(frozen=True, slots=True)
class Guest:
    """The other end of a veth pair, in a namespace of its own."""

    node: str  # the namespace's name: "c1"
    link: Link | None  # None: the namespace was not read
    key: LinkKey
    containers: tuple[str, ...] = ()  # that live in it, the one that it was made for first
    published: tuple[Published, ...] = ()  # their ports at the host


@dataclass(frozen=True, slots=True)
class Port:
    link: Link  # on the bridge's side
    guest: Guest | None  # None: no veth, or one whose other end is in a namespace that is not known
    learned: tuple[str, ...] = ()  # MACs that the bridge has learned behind it


@dataclass(frozen=True, slots=True)
class Bridge:
    """A switch to its ports, and a NIC to the namespace that it is in."""

    node: str  # "host", but for a bridge in a container
    netns: int
    link: Link
    network: EngineNetwork | None
    ports: tuple[Port, ...]  # those that were chosen
    hidden: int = 0  # ports that were not chosen
    learned: int = 0  # MACs behind all of them


@dataclass(frozen=True, slots=True)
class Uplink:
    """A device of the host with addresses that is no bridge: a way out."""

    link: Link
    gateways: tuple[Address, ...]  # of the default routes by it
    guest: Guest | None = None  # where it is a veth: who is at the other end


@dataclass(frozen=True, slots=True)
class Alone:
    """What takes part in the network without a bridge, or does not."""

    name: str  # of a container; of a device of the host that leads to a namespace
    kind: str  # "host", "none", "shared", "macvlan", "ipvlan", "routed", "unbridged", "stopped", "unread"
    sentence: str  # what that means
    links: tuple[Link, ...] = ()  # its devices, without lo


@dataclass(frozen=True, slots=True)
class Fact:
    """A setting of the host that decides on many packets' way."""

    name: str  # "forwarding", "br_netfilter", "firewall"
    value: str  # "on", "off", "iptables-nft and iptables-legacy"
    good: bool = True


@dataclass(frozen=True, slots=True)
class Picture:
    facts: tuple[Fact, ...]
    uplinks: tuple[Uplink, ...]
    bridges: tuple[Bridge, ...]
    alone: tuple[Alone, ...]
    findings: tuple[Cause, ...] = ()
    unchecked: tuple[str, ...] = ()  # what could not be looked at for findings, and why
    source: str = ""  # the file that it was read from; "": this machine, now


@dataclass(frozen=True, slots=True)
class Row:
    cells: tuple[str, ...]  # as many as its table has columns
    mark: str = ""  # "" | "!": will bite, or tells of trouble | ">": the row that was asked for
    note: str = ""  # a sentence about it


@dataclass(frozen=True, slots=True)
class Table:
    name: str  # "ports", for programs
    title: str  # "Ports of docker0"
    meaning: str  # in words
    command: str  # that would show it
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  # sentences below it
