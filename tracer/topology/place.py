"""Where a packet starts and where it goes: a namespace that somebody named, and an address chosen in it."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.errors import UserError
from tracer.model.topology import Address, Container, Namespace


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace by the name that the user gave it."""

    word: str  # as typed: "c3", "netns:blue", "pid:17", "host"
    name: str  # what hops call it: "c3", "blue", "pid:17", "host"
    netns: int  # number
    path: str  # opens it
    container: Container | None = None
    notes: tuple[str, ...] = ()  # sentences worth saying once: "c3 shares the network namespace of c1"


@dataclass(frozen=True, slots=True)
class Destination:
    address: Address
    place: Place | None  # None: nobody here is known to have the address
    name: str  # the place's name, else the word that was typed
    notes: tuple[str, ...] = ()


def candidates(source: Namespace, target: Namespace, version: int | None) -> list[Address]:
    """The target's addresses, best first: those that share a subnet with the source, in the target's own order else.

    Without `version` those are IPv4 addresses wherever both sides have one, else IPv6. Empty if there are none.
    """
    versions = (version,) if version else (4, 6)
    both = [v for v in versions if source.addresses(v) and target.addresses(v)]
    for chosen in both or [v for v in versions if target.addresses(v)]:
        networks = [interface.network for _, interface in source.addresses(chosen)]
        addresses = [interface.ip for _, interface in target.addresses(chosen)]
        return sorted(addresses, key=lambda address: not any(address in network for network in networks))
    return []


def no_address(source: Place, here: Namespace, target: Place, there: Namespace, version: int | None,
               client: str = "docker") -> UserError:
    """Why `candidates` found nothing, with what the user can do."""
    kind, other = (f"IPv{version}", 10 - version) if version else ("IP", 0)
    neither = not any(here.addresses(v) for v in ((version,) if version else (4, 6)))
    who = f"Neither {source.name} nor {target.name} has an" if neither else f"{target.name} has no"
    if other and there.addresses(other):
        mend = f"leave out -{version}, since {target.name} has an IPv{other} address"
    elif target.container:
        network = "a network that was created with --ipv6" if version == 6 else "a network"
        mend = f"connect it to {network} with `{client} network connect NETWORK {target.container.name}`"
    else:
        mend = f"give {target.name} one with `ip address add`"
    return UserError(f"{who} {kind} address: {mend}.")
