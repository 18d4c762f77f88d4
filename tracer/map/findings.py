"""What will bite before a packet is sent: faults that the tables alone tell.

Each check looks at the network and yields what it found, as a cause of a packet's death would be told: names are those of
tracer/journey/causes.py, and so are the sentences where both speak of one fault (tracer/journey/sentences.py). To add one,
write its name and meaning into NAMES there and its function into the list here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tracer.map import faults_addresses as addresses, faults_devices as devices, faults_rules as rules
from tracer.map.scene import Scene
from tracer.map.view import View
from tracer.model.journey import Cause
from tracer.model.ruleset import Ruleset
from tracer.model.topology import Topology

# In the order in which packets meet them.
CHECKS: tuple[Callable[[Scene], Iterable[Cause]], ...] = (
    rules.forwarding_off, rules.bridge_filter_off, rules.docker_chains_missing, rules.two_backends,
    devices.bridge_down, devices.bridge_without_address, devices.port_down, devices.port_blocked,
    devices.veth_without_bridge, devices.mtu_unequal,
    addresses.mac_twice, addresses.address_twice, addresses.subnets_overlap, addresses.wrong_mac,
)


def findings(topology: Topology, ruleset: Ruleset | None) -> tuple[Cause, ...]:
    """`ruleset`: the host's; None: it was not read."""
    scene = Scene(View(topology), ruleset)
    return tuple(found for check in CHECKS for found in check(scene))


def unchecked(topology: Topology, ruleset: Ruleset | None) -> tuple[str, ...]:
    """What could not be looked at, and why."""
    host = View(topology).host
    veths = [link for link in host.links.values() if link.kind == "veth"] if host else []
    unread = sorted({topology.node(link.peer.netns) for link in veths if link.peer
                     and link.peer.netns not in topology.namespaces})
    nameless = sorted(link.name for link in veths if link.peer is None)
    rules = [f"rules ({why})" for why in ruleset.unknown] if ruleset else ["the rules, which a recording does not hold"]
    return (*rules, *([f"the namespaces of {_some(unread)}, which were not read"] if unread else []),
            *([f"what is behind {_some(nameless)}, in namespaces that have no name here"] if nameless else []))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
