"""Sentences about one fault that are told at several places: as a cause of a packet's death, as why there was none, as a
finding in the tables before there is a packet."""

from __future__ import annotations

from tracer.model.topology import Address, EngineNetwork, Link, PolicyRule


def no_forwarding(name: str, setting: str) -> str:
    return f"{name} does not forward packets from one device to another: {setting} is 0."


def chains_gone(chain: str, network: EngineNetwork, engine: str) -> str:
    return (f"{engine}'s rules are gone from {chain}, as after a firewall was reloaded or flushed: nothing accepts the "
            f"packets of {network.name}, and the policy is DROP.")


def rule_refuses(rule: PolicyRule, where: str) -> str:
    return f"A row of `ip rule` of {where} refuses it: {rule.words}."


def lookup_ended(where: str, goal: str, prefix: str) -> str:
    return (f"{where} found no route to {goal}, though its tables have {prefix}: a row of `ip rule` ends the lookup before, "
            "or the next hop is down.")


def bridge_down(link: Link, where: str) -> str:
    return f"The bridge {link.name} of {where} is down: it neither switches frames nor takes any for {where}."


def link_down(link: Link, where: str, target: str) -> str:
    return f"{link.name} of {where}, between the bridge and {target}, is down."


def port_blocked(link: Link) -> str:
    state = link.port.state if link.port else "?"
    return f"The bridge's port {link.name} is in the state {state}: it passes no packets."


def no_bridge_address(link: Link, where: str, version: int, gateway: str) -> str:
    return f"{link.name} of {where} has no IPv{version} address: nobody is the gateway {gateway}."


def same_mac(names: tuple[str, str], mac: str | None, bridge: str) -> str:
    return (f"{names[0]} and {names[1]} have the same MAC {mac} on {bridge}, which looks for it behind one port at a time: "
            "what is for one goes to the other, or nowhere.")


def same_address(names: tuple[str, str], address: Address | None, bridge: str) -> str:
    return (f"{names[0]} and {names[1]} have the same address {address} on {bridge}: who answers the question for its MAC "
            "first gets the packets.")
