"""Could a packet match a rule? Read from the rule's text, as iptables-save and nft write it.

Three answers: surely, surely not, and "that depends": on what is not known of the packet, or on a match that is not known
here. A rule is left out only where some match of it surely fails, and ends the packet's way only where all surely hold.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from tracer.model.counters import CountedRule
from tracer.model.topology import Address

_IPTABLES_VALUES = {"-s": "src", "-d": "dst", "-i": "came", "-o": "goes", "-p": "proto", "--dport": "dport",
                    "--dst-type": "local", "--ctstate": "state", "--state": "state"}
_SILENT = ("comment", "addrtype", "tcp", "udp", "conntrack", "state")  # modules that match by their own options alone
_NFT = re.compile(r"(iifname|oifname|iif|oif|ip6? saddr|ip6? daddr|ct state|(?:tcp|udp) dport) "
                  r'(?!vmap|map |\.)(!= )?(\{[^}]*\}|"[^"]*"|\S+)')
_NFT_NAMES = {"iifname": "came", "iif": "came", "oifname": "goes", "oif": "goes", "ct state": "state"}
_PROTOCOLS = {"ipv6-icmp": "icmpv6", "icmp6": "icmpv6"}
_NFT_SAYS = re.compile(r'counter( packets \d+ bytes \d+)?|(jump|goto) \S+|accept|drop|return|masquerade|'
                       r"reject.*$|dnat.*$|snat.*$|redirect.*$|xt target .*$|queue.*$|log.*?(?= accept| drop|$)")

Answer = bool | None


@dataclass(frozen=True, slots=True)
class Packet:
    """What is known of a packet at a hook. None: anything."""

    hook: str
    version: int
    src: Address | None
    dst: Address | None
    came: str | None  # the device that it came by; "" for what starts here
    goes: str | None  # the device that it leaves by; "" for what ends here
    proto: str | None = None
    dport: int | None = None
    local: bool | None = None  # is the destination an address of the namespace itself?
    state: str | None = None  # of its connection, as iptables names it: "NEW"
    level: int = 3  # 2: as nftables' family bridge sees it; devices are ports then
    devices: frozenset[str] | None = None  # that chains at ingress may belong to


def fits(rule: CountedRule, packet: Packet) -> bool:
    """Not: some match surely fails."""
    return all(answer is not False for answer in answers(rule.rule or "", packet))


def sure(rule: CountedRule, packet: Packet) -> bool:
    """Do all matches surely hold?"""
    return all(answer is True for answer in answers(rule.rule or "", packet))


def could_be(rule: CountedRule, key: str, packet: Packet) -> bool:
    """Where the rule looks its verdict up by a device's name in a map: could it be this one?"""
    by = re.search(r"\b([io]ifname) vmap ", rule.rule or "")
    return by is None or _compare(_NFT_NAMES[by[1]], key, packet) is not False


def answers(text: str, packet: Packet) -> Iterator[Answer]:
    return _iptables(text, packet) if text.startswith("-A ") else _nft(text, packet)


def _iptables(text: str, packet: Packet) -> Iterator[Answer]:
    try:
        words = shlex.split(text)[2:]
    except ValueError:
        yield None
        return
    negated = False
    at = 0
    while at < len(words):
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        if word in ("-j", "-g"):
            return  # what follows is the target's
        if word == "!":
            negated, at = True, at + 1
            continue
        if word in _IPTABLES_VALUES:
            answer = _compare(_IPTABLES_VALUES[word], value, packet)
            yield None if answer is None else answer is not negated
        elif not (word == "--comment" or (word == "-m" and value in _SILENT)):
            yield None
        negated, at = False, at + (2 if word == "--comment" or not value.startswith(("-", "!")) else 1)


def _nft(text: str, packet: Packet) -> Iterator[Answer]:
    text = re.sub(r'comment "[^"]*"', "", text)  # it may read like a match
    for what, negation, value in _NFT.findall(text):
        name = _NFT_NAMES.get(what) or ("dport" if what.endswith("dport") else "src" if what.endswith("saddr") else "dst")
        if what.startswith(("ip ", "ip6 ")) and (what.startswith("ip6") is not (packet.version == 6)):
            yield False  # of the other IP version
            continue
        if name == "dport" and packet.proto not in (None, what[:3]):
            yield False
            continue
        values = [one.strip().strip('"') for one in value.strip("{}").split(",")]
        each = [_compare(name, one, packet) for one in values]
        answer = True if True in each else None if None in each else False
        if name == "dport" and packet.proto is None and answer:
            answer = None
        yield None if answer is None else answer is not bool(negation)
    if _NFT_SAYS.sub("", _NFT.sub("", text)).strip():
        yield None


def _compare(name: str, value: str, packet: Packet) -> Answer:
    if value.startswith("@"):  # a set of nft's, whose elements may come and go
        return None
    if name in ("src", "dst"):
        address = packet.src if name == "src" else packet.dst
        try:
            return None if address is None else address in ip_network(value, strict=False)
        except ValueError:  # a set, a range
            return None
    if name in ("came", "goes"):
        device = packet.came if name == "came" else packet.goes
        if device is None:
            return None
        stem = value.removesuffix("+").removesuffix("*")
        return device.startswith(stem) and bool(device) if stem != value else device == value
    if name == "proto":
        return None if packet.proto is None or value.isdecimal() else packet.proto == _PROTOCOLS.get(value, value)
    if name == "state":
        states = value.upper().split(",")
        return None if packet.state is None or {"DNAT", "SNAT"} & {*states} else packet.state in states
    if name == "dport":
        return None if packet.dport is None or not value.isdecimal() else packet.dport == int(value)
    return packet.local if value == "LOCAL" else None
