"""Why a packet died, or why nothing came back: a list of causes, each with what must have been seen for it.

Each function below looks at one journey (Case) and returns what it found, or None. The first in the file that find
something are the likeliest: three are told. Those marked as a last resort are asked only where nothing else was found. To
add one, write its name and meaning into NAMES and its function where it ranks. A cause says only what was observed on the
way or read from the machine's tables, and lists that as its evidence.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_interface

from tracer.journey import sentences
from tracer.journey.case import Case, parsed, rows
from tracer.journey.engines import engine_words
from tracer.journey.reasons import QUEUES, WORDS, place
from tracer.model.journey import BRANCHES, Cause, Hop, Journey, Result, Rule, Stage
from tracer.model.probes import Missing
from tracer.model.topology import Address, EngineNetwork, Link, Namespace, PolicyRule, Topology

_UNKNOWN = "which rule dropped it is not known"
MOST = 3  # causes that are told of one journey
# Stable names, as JSON prints them. Never renamed.
NAMES = {
    # rules
    "conntrack_full": "the connection tracking table is full",
    "direct_access_blocked": "Docker's rule in raw/PREROUTING: a container is reached by its own bridge only",
    "network_internal": "a network without a way out (--internal)",
    "networks_isolated": "two containers on different Docker networks",
    "icc_off": "a network whose containers may not talk to each other (--icc=false)",
    "port_not_published": "the container's port is not published",
    "accepted_then_dropped": "one nftables base chain accepted it, a later one dropped it",
    "docker_user_rule": "a rule in DOCKER-USER",
    "host_input_blocked": "the host's firewall refuses what comes from a container",
    "bridged_traffic_filtered": "br_netfilter shows frames that a bridge only switches to iptables",
    "docker_chains_missing": "FORWARD does not lead to Docker's chains",
    "chain_policy": "no rule accepted it, and the chain's policy is DROP",
    "firewall_rule": "any other rule that drops or rejects",
    "queue_unread": "a rule hands it to a program, which is not there or dropped it",
    "one_of_rules": "one of several rules, which is not known",
    "docker_rules_missing": "a published port was not translated: Docker's rules are gone",
    # routing
    "forwarding_off": "ip_forward is 0 (or IPv6's forwarding)",
    "route_refuses": "a blackhole, prohibit or unreachable route",
    "no_route": "no route to the destination",
    "reverse_path": "rp_filter expects the source on another device",
    "source_is_own": "the source is the receiver's own address",
    "martian": "an address that may not be on the wire here",
    "ttl_expired": "the time to live ran out",
    "route_mtu_too_small": "the next device's MTU is smaller than the packet, which may not be fragmented",
    # neighbours
    "bridge_without_address": "the gateway's address is not on the bridge",
    "wrong_gateway": "the route's gateway does not exist",
    "neighbor_elsewhere": "the address is on another bridge than the one that was asked",
    "neighbor_does_not_answer": "the owner of the address got the question and did not answer",
    "nobody_has_address": "nobody answers for the address",
    "address_twice": "two on one bridge have the same IP address",
    "mac_twice": "two on one bridge have the same MAC address",
    "wrong_mac": "the sender's neighbour table has a MAC that is not the owner's",
    # bridge and devices
    "bridge_down": "the bridge is down",
    "port_down": "the bridge's port to the target, or its other end, is down",
    "port_blocked": "the bridge's port is not in the state forwarding",
    "ports_isolated": "both ports of the bridge are isolated",
    "flood_off": "the bridge's port to the target is left out of floods",
    "hairpin_off": "the frame would have to leave by the port that it came by",
    "port_mtu_too_small": "the bridge's port has a smaller MTU than the packet",
    "no_carrier": "the next device has no carrier: no cable, or its other end is down",
    # transport
    "published_elsewhere": "the port is published on another address of the host only",
    "listens_elsewhere": "the program listens on another address only, such as 127.0.0.1",
    "nothing_listens": "no program listens on the port",
    "bad_checksum": "a checksum is wrong",
    "bad_header": "a header is not valid, or cut off",
    "socket_full": "the program does not read fast enough",
    "socket_filter": "the socket's own filter",
    "tc_drop": "a tc filter",
    "xdp_drop": "an XDP program",
    "cgroup_program": "a BPF program of the cgroup",
    "ipsec_policy": "an IPsec policy",
    "security_module": "SELinux, AppArmor or the like",
    "ipv6_disabled": "disable_ipv6 is set",
    "queue_full": "a device's or a CPU's queue is full",
    "device_not_ready": "the next device does not take packets",
    "no_memory": "memory is short",
    # silence
    "echo_ignored": "icmp_echo_ignore_all is set",
    "container_paused": "the container is paused",
    "source_not_translated": "it left with a private source address: MASQUERADE is missing",
    "no_way_back": "the destination has no route to the source",
    "reply_other_way": "the reply took another way than the request",
    "untracked_skips_nat": "a rule exempts it from connection tracking, and so from NAT",
    "invalid_skips_nat": "conntrack calls it INVALID, and NAT leaves it alone",
    "program_silent": "a program took it and sent nothing back",
    "beyond_this_host": "it left this host, and nothing came back",
    "no_reply_seen": "it was delivered, and no reply was seen to start",
    "not_observed": "probes are missing on this machine: its end may have passed unseen",
    # before a packet
    "no_route_in_sender": "the sender has no route to the destination: no packet was made",
    "send_refused": "the sender's kernel refused the packet",
    # what will bite before a packet is sent, as `topo` finds it; beside those above that the tables alone tell
    "bridge_filter_off": "rules for what a bridge switches are there, and br_netfilter is off: they never apply",
    "mtu_unequal": "the MTUs along a way differ",
    "subnets_overlap": "a bridge's subnet and another route overlap",
    "veth_without_bridge": "a veth of a container is on no bridge",
    "two_backends": "iptables-nft and iptables-legacy both have rules",
    # about what was delivered
    "untranslated": "as docker_rules_missing, but the userland proxy took it",
    "input_not_met": "a published port is forwarded: INPUT rules do not apply to it",
}

Found = tuple[str, Iterable[str], str | None] | Cause | None  # sentence, evidence, mend; or another journey's cause
Check = Callable[[Case], Found]
CAUSES: list[Check] = []
LAST_RESORTS: list[Check] = []
REMARKS: list[Check] = []


def cause(check: Check) -> Check:
    CAUSES.append(check)
    return check


def remark(check: Check) -> Check:
    REMARKS.append(check)
    return check


def last_resort(check: Check) -> Check:
    LAST_RESORTS.append(check)
    return check


def explain(journeys: Sequence[Journey], topology: Topology, silent: Collection[int] = (),
            missing: tuple[Missing, ...] = (), delivered: bool = True) -> list[Journey]:
    """The journeys with their causes. They are those of a probe and the lookups of that time: evidence for each other.

    `silent`: probes that are over and got no answer. Without `delivered`, nothing is remarked on what was delivered.
    """
    others = tuple(journeys)
    return [replace(j, end=j.end._replace(causes=causes(Case(j, others, topology, j.seq in silent, missing))))
            if j.kind not in BRANCHES and (delivered or j.end.result is not Result.DELIVERED) else j for j in journeys]


def causes(case: Case) -> tuple[Cause, ...]:
    """The likeliest first, three at most."""
    found = _asked(case, CAUSES) or _asked(case, LAST_RESORTS)
    return tuple((found or [replace(one, remark=True) for one in _asked(case, REMARKS)])[:MOST])


def _asked(case: Case, checks: Sequence[Check]) -> list[Cause]:
    return [found if isinstance(found, Cause) else
            Cause(check.__name__, _sentence(found[0]), (*found[1], *_errors(case)), found[2])
            for check in checks if (found := check(case))]


def _sentence(text: str) -> str:
    return f"The {text[4:]}" if text.startswith("the ") else text


def _errors(case: Case) -> list[str]:
    errors = case.errors if case.journey.kind != "error" else []
    return [f"an ICMP error told {e.target or e.packet.dst}: type {e.packet.icmp_type}, code {e.packet.icmp_code}, from "
            f"{e.packet.src}" for e in errors]


# rules ------------------------------------------------------------------------------------------------------------------


@cause
def conntrack_full(case: Case) -> Found:
    most, now = (case.sysctl(case.space, f"net.netfilter.nf_conntrack_{name}") for name in ("max", "count"))
    if not case.by("NETFILTER_DROP") or case.rule or case.space is None or not (most or "").isdecimal():
        return None
    if not most or not now or not now.isdecimal() or int(now) < int(most):
        return None
    return (f"The connection tracking table of {case.name(case.space)} is full: new connections are dropped.",
            [f"nf_conntrack_count {now}, nf_conntrack_max {most}", "no rule was seen to drop it"],
            case.run(case.space, f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}"))


# As iptables and nft write it.
_DIRECT = re.compile(r'-d (\S+)/\d+ ! -i (\S+) -j DROP|daddr (\S+) iifname != "([^"]+)" .*DROP DIRECT ACCESS')


@cause
def direct_access_blocked(case: Case) -> Found:
    rule, target, bridge = case.rule, case.target, _guarded(case)
    if rule is None or target is None or bridge is None or networks_isolated(case):
        return None
    return (f"Docker lets packets to {case.titled(target)} in by its own bridge {bridge} only, and this one "
            f"came by {case.came_by}. The rule is in {_chain(rule)}: no rule in DOCKER-USER or elsewhere in forwarding, "
            "which comes later, can let it pass.",
            _text(rule), _connect(case) or f"publish the port: `{_client(case)} run -p HOSTPORT:{_port(case)}`")


def _guarded(case: Case) -> str | None:
    """The bridge by which alone Docker's rule in raw/PREROUTING lets packets to a container in, if that stopped this one.

    Where the rule is not known, that of the destination's network, if the table stopped it.
    """
    rule, last, goal = case.rule, case.last, parsed(case.packet.dst)
    if not (case.by("NETFILTER_DROP") and case.at_host and case.stage is Stage.PREROUTING and last and goal):
        return None
    if rule:
        found = _DIRECT.search(rule.rule or "")
        return found[2] or found[4] if found and case.packet.dst in (found[1], found[3]) else None
    if "raw" not in (table.table for table in last.stopped_at):
        return None
    return next((n.device for n in case.topology.networks if any(goal in subnet for subnet in n.subnets)), None)


@cause
def network_internal(case: Case) -> Found:
    inside = [n for n in (case.network(case.came_by), case.network(case.goes_by)) if n and n.internal]
    if not _refused_between_networks(case) or not inside:
        return None
    return (f"The network {inside[0].name} is internal: nothing gets into it or out of it.",
            (f"{inside[0].device} is the bridge of {inside[0].name}, created with --internal", *_text(case.rule)),
            _connect(case) or _connect_source(case))


@cause
def networks_isolated(case: Case) -> Found:
    source, target = case.source, case.target
    guarded = _guarded(case)  # before the route is looked up, which would tell by what it goes
    if source is None or target is None or not (guarded or _refused_between_networks(case)) or network_internal(case):
        return None
    into = guarded or case.goes_by
    known = case.network(case.came_by) and case.network(into)
    if not known and not (case.rule and case.rule.chain.startswith("DOCKER-ISOLATION-STAGE")):
        return None
    if set(case.networks(source)) & set(case.networks(target)):
        return None
    names = [case.titled(n) if case.networks(n) else f"{case.name(n)} (on {bridge})"
             for n, bridge in ((source, case.came_by), (target, into))]
    engine = engine_words(case.topology).name
    return (f"{names[0]} and {names[1]} are on different {engine} networks, which {engine} isolates.",
            _text(case.rule) or [_UNKNOWN], _connect(case))


def _refused_between_networks(case: Case) -> bool:
    """Stopped in the host's FORWARD, by a rule of Docker's own or one that is not known, between two devices."""
    rule, engine = case.rule, engine_words(case.topology)
    own = rule is None or _whose(rule) == engine.name or (
        rule.chain.startswith(engine.chains) and rule.chain != "DOCKER-USER")
    return bool(case.by("NETFILTER_DROP") and case.at_host and case.stage is Stage.FORWARD and own
                and not (rule and rule.policy) and case.came_by and case.goes_by and case.came_by != case.goes_by)


def _client(case: Case) -> str:
    return case.topology.client


def _connect(case: Case) -> str | None:
    """Put the source on a network of the target."""
    source = case.container(case.source) if case.source else None
    networks = case.networks(case.target) if case.target else ()
    return f"{_client(case)} network connect {shlex.quote(networks[0])} {source.name}" if source and networks else None


def _open_network(topology: Topology) -> str | None:
    """A network of the engine that leads out: the default one, if there is."""
    names = [n.name for n in topology.networks if n.driver == "bridge" and not n.internal]
    return next((name for name in ("bridge", "podman") if name in names), next(iter(names), None))


def _connect_source(case: Case) -> str | None:
    source, other = case.container(case.source) if case.source else None, _open_network(case.topology)
    return f"{_client(case)} network connect {shlex.quote(other)} {source.name}" if source and other else None


@cause
def icc_off(case: Case) -> Found:
    network = case.network(case.came_by)
    rule = case.rule
    if not (case.by("NETFILTER_DROP") and case.at_host and case.stage is Stage.FORWARD and case.switched and network):
        return None
    if rule and not (rule.chain != "DOCKER-USER" and f"-i {network.device} -o {network.device} " in (rule.rule or "")) \
            and not _of_bridge(rule, network, "ICC"):
        return None
    if network.icc:
        return (f"The rule keeps containers on network {network.name} from talking to each other, as Docker's --icc=false "
                "does.", _text(rule), _delete(case, rule)) if rule else None
    return (f"Containers on network {network.name} may not talk to each other: inter-container communication is off "
            "(--icc=false).", (f"network {network.name} has enable_icc=false", *_text(rule)),
            'remove "icc": false from /etc/docker/daemon.json and restart Docker' if network.name == "bridge" else
            "create the network anew without com.docker.network.bridge.enable_icc=false")


@cause
def port_not_published(case: Case) -> Found:
    rule, target = case.rule, case.target
    container = case.container(target) if target else None
    network = case.network(case.goes_by)
    if not (case.by("NETFILTER_DROP") and case.at_host and case.stage is Stage.FORWARD and container and network
            and case.came_by != case.goes_by):
        return None
    docker = rule and (_of_bridge(rule, network, "UNPUBLISHED PORT DROP") or (
        rule.chain == "DOCKER" and f"! -i {network.device} -o {network.device}" in (rule.rule or "")))
    if rule and not docker and not (rule.policy and rule.chain == "FORWARD"):
        return None
    if networks_isolated(case) or network_internal(case):
        return None
    port = case.packet.dport
    if any(p.container_port == port and p.protocol == case.packet.proto for p in container.ports):
        return None
    what = f"Port {port} of {container.name} is not published" if port else \
        f"{container.name} is reached from outside of network {network.name} by published ports only"
    ports = ", ".join(f"{p.container_port}/{p.protocol} at {p.host_port}" for p in container.ports) or "nothing"
    return (f"{what}: the host lets nothing else through to it.",
            (f"{container.name} publishes {ports}", *(_text(rule) if rule else [_UNKNOWN])),
            _connect(case) or f"create {container.name} anew with `-p HOSTPORT:{_port(case)}`")


def _of_bridge(rule: Rule, network: EngineNetwork, comment: str) -> bool:
    """Is it this one of Docker's nftables backend, for what goes to the network?"""
    return (rule.table, rule.chain) == ("docker-bridges", f"filter-forward-in__{network.device}") and \
        f'comment "{comment}"' in (rule.rule or "")


def _port(case: Case) -> str:
    return str(case.packet.dport or "PORT") + ("/udp" if case.packet.proto == "udp" else "")


@cause
def accepted_then_dropped(case: Case) -> Found:
    rule, last = case.rule, case.last
    if not (rule and last and case.dropped):
        return None
    # what accepts by policy, or translates addresses, did not mean to let it pass
    before = next((r for r in reversed(last.rules) if r.verdict == "accept" and not r.policy and r.rule and
                   (r.family, r.table) != (rule.family, rule.table) and not _translates(case, r)), None)
    if before is None:
        return None
    return (f"{_chain(before)} accepted it, and then {_chain(rule)} {_verb(rule)} it: in nftables an accept ends the chain "
            "and those that it calls, not the chains of other tables at the same hook.",
            (*_text(before), *_text(rule)),
            (_allow if rule.policy else _delete)(case, rule) or f"let it pass in {_chain(rule)} too")


def _translates(case: Case, rule: Rule) -> bool:
    return any((c.family, c.table, c.kind) == (rule.family, rule.table, "nat")
               for c in (case.space.chains if case.space else None) or ())


@cause
def docker_user_rule(case: Case) -> Found:
    rule = case.rule
    if not (case.dropped and rule and rule.chain == "DOCKER-USER"):
        return None
    return ("A rule in DOCKER-USER, which is for the host's owner to fill, refuses it.", _text(rule), _delete(case, rule))


@cause
def host_input_blocked(case: Case) -> Found:
    rule, host = case.rule, case.host
    if not (rule and case.dropped and case.at_host and case.stage is Stage.INPUT and host and case.came_by):
        return None
    link = host.by_name(case.came_by)
    if link is None or link.kind != "bridge" or rule.policy:
        return None
    return (f"The host's own firewall refuses it: to the host, a packet from {case.journey.source} to one of its addresses "
            f"comes in by {link.name} and meets INPUT, published port or not.", _text(rule), _allow(case, rule))


@cause
def bridged_traffic_filtered(case: Case) -> Found:
    rule, host = case.rule, case.host
    if not (case.by("NETFILTER_DROP") and case.at_host and host and rule and rule.family in ("ip", "ip6", "inet")):
        return None
    if not case.switched and not (case.stage is Stage.PREROUTING and _on_bridge(case, host)):
        return None
    name = f"net.bridge.bridge-nf-call-ip{'6' if case.version == 6 else ''}tables"
    if case.sysctl(host, name) != "1" or icc_off(case):
        return None
    return (f"{case.came_by} was only a switch for this packet, but br_netfilter shows switched frames to the host's IP "
            f"rules, and {_chain(rule)} {_verb(rule)} it.", (f"{name} = 1", *_text(rule)), f"sysctl -w {name}=0")


def _on_bridge(case: Case, host: Namespace) -> bool:
    """Does what has the destination hang on the bridge that the packet came by? The bridge would have passed it on."""
    goal = parsed(case.packet.dst)
    bridge = case.bridge_of(case.target, case.target.owner_of(goal)) if case.target and goal else None
    return bool(bridge and bridge[0] is host and bridge[1].name == case.came_by)


@cause
def docker_chains_missing(case: Case) -> Found:
    rule, last = case.rule, case.last
    network = case.network(case.came_by) or case.network(case.goes_by)
    if not (case.dropped and case.at_host and case.version == 4 and network and last and rule and rule.policy):
        return None
    engine = engine_words(case.topology)
    own = any(mark in f"{r.chain} {r.verdict} {r.rule}" for r in last.rules for mark in engine.chains)
    if rule.chain != "FORWARD" or last.rules_unknown or own:
        return None
    return (sentences.chains_gone(_chain(rule), network, engine.name),
            [f"{_chain(rule)} sends nothing to a chain of {engine.name}'s"], engine.restore)


@cause
def chain_policy(case: Case) -> Found:
    rule = case.rule
    if not (case.dropped and rule and rule.policy):
        return None
    return (f"No rule of {_chain(rule)} accepted it, and the chain's policy is DROP.",
            [f"the policy of {_chain(rule)} ended its way"], _allow(case, rule))


@cause
def docker_rules_missing(case: Case) -> Found:
    return _not_translated(case) if (case.dropped or case.silent) and not _untracked(case) else None


def _untracked(case: Case) -> bool:
    """NAT is a matter of connections: it leaves alone what connection tracking does not follow."""
    return any(h.conntrack == "UNTRACKED" for h in case.journey.hops)


@cause
def untracked_skips_nat(case: Case) -> Found:
    if not _untracked(case) or not ((case.dropped and _not_translated(case)) or _private_source(case)):
        return None
    hop = next(h for h in case.journey.hops if h.conntrack == "UNTRACKED")
    where = case.topology.namespaces[hop.netns]
    rule = next((r for h in case.journey.hops for r in h.rules if "notrack" in (r.rule or "").lower()), None)
    return (f"A rule of {case.name(where)} exempts it from connection tracking (NOTRACK), and so from NAT, which left "
            "its addresses as they were.", (f"conntrack UNTRACKED at {hop.stage.value} of {hop.node}", *_text(rule)),
            "look for NOTRACK in `iptables-save -t raw` and `nft list ruleset`")


def _not_translated(case: Case) -> Found:
    host, packet = case.host, case.journey.packet
    if not (case.request and case.at_host and host and host.has(packet.dst)):
        return None
    hooks = [h for h in case.journey.hops if h.netns == host.netns and h.stage is Stage.PREROUTING]
    bridge = host.by_name(case.came_by or "")
    if not hooks or any(h.rewrite for h in hooks):
        return None
    if case.came_by is None or case.came_by == "lo" or (bridge and bridge.kind == "bridge"):
        return None  # Docker translates neither, where the userland proxy runs
    for container, port in case.published(packet.dport, packet.proto):
        if _holds(port.host_ip, packet.dst):
            engine = engine_words(case.topology)
            nat = any(t.table == "nat" for h in hooks for t in h.tables or ())
            return (f"{container.name} publishes this port, but nothing translated the packet to {container.name}: "
                    f"{engine.name}'s rules are gone, as after a firewall was reloaded or flushed.",
                    (f"{container.name} publishes {port.container_port}/{port.protocol} at {port.host_port}",
                     "no address changed at PREROUTING", "PREROUTING has a nat table" if nat else
                     f"PREROUTING has no nat table: {engine.chains[0]} is missing there"), engine.restore)
    return None


@cause
def firewall_rule(case: Case) -> Found:
    rule = case.rule
    if not (case.dropped and rule) or case.space is None or rule.verdict == "queue" or any(check(case) for check in (
            direct_access_blocked, network_internal, networks_isolated, icc_off, port_not_published, accepted_then_dropped,
            docker_user_rule, host_input_blocked, chain_policy)):
        return None
    whose = f"of {_whose(rule)} " if _whose(rule) not in (None, "a person") else ""
    where = "" if case.at_host else f" of {case.name(case.space)} itself"
    verb = {"dropped": "drops", "rejected": "rejects"}[_verb(rule)]
    return f"A rule {whose}in {_chain(rule)}{where} {verb} it.", _text(rule), _delete(case, rule)


def _whose(rule: Rule) -> str | None:
    """"Docker" of "Docker, network web"."""
    return rule.owner.partition(",")[0] if rule.owner else None


@cause
def queue_unread(case: Case) -> Found:
    rule = case.rule
    if not (case.dropped and rule and rule.verdict == "queue"):
        return None
    if case.journey.end.function != QUEUES[0]:
        return (f"A rule in {_chain(rule)} hands it to a program, which dropped it.", _text(rule),
                "ask the program: /proc/net/netfilter/nfnetlink_queue has its pid in the second column")
    bypass = "--queue-bypass" if _of_iptables(rule) else "queue flags bypass"
    return (f"A rule in {_chain(rule)} hands it to a program, and none reads that queue, or it is full.",
            _text(rule), f"start the program, or let the packet pass without it: {bypass}")


@cause
def one_of_rules(case: Case) -> Found:
    last = case.last
    found = [r for r in last.rules if r.by == "candidate" and r.verdict in ("drop", "reject")] if last else []
    if not case.by("NETFILTER_DROP") or case.rule or case.space is None or not found:
        return None
    names = " or ".join(dict.fromkeys(f"the policy of {_chain(r)}" if r.policy else f"a rule in {_chain(r)}" for r in found))
    return (f"A firewall of {case.name(case.space)} stops it: {names}. Which of them, counters alone do not tell.",
            [f"{_chain(r)}: {r.rule} (its counter rose)" for r in found if r.rule], None)


def _chain(rule: Rule) -> str:
    """"filter/FORWARD", "inet firewalld/filter_FORWARD"."""
    family = "" if rule.family in ("ip", "ip6") else f"{rule.family} "
    return f"{family}{rule.table}/{rule.chain}"


def _verb(rule: Rule) -> str:
    return "rejected" if rule.verdict == "reject" else "dropped"


def _text(rule: Rule | None) -> list[str]:
    return [f"{_chain(rule)}: {rule.rule}{'' if rule.exact else ' (concluded from counters)'}"] if rule and rule.rule else []


def _tool(case: Case, rule: Rule) -> str:
    return ("ip6tables" if case.version == 6 else "iptables") + ("-legacy" if rule.legacy else "")


def _of_iptables(rule: Rule) -> bool:
    return rule.legacy or (rule.rule or "").startswith("-A ") or (
        rule.policy and rule.family in ("ip", "ip6") and rule.table in ("filter", "raw", "mangle", "nat", "security")
        and rule.chain.isupper())


def _delete(case: Case, rule: Rule) -> str | None:
    """Whose rule it is decides by what to change it."""
    owned = {"ufw": "change it with `ufw status numbered` and `ufw delete`", "firewalld": "change it with `firewall-cmd`"}
    whose = _whose(rule)
    if whose == "firewalld" and rule.chain in ("filter_INPUT", "filter_FORWARD") and case.network(case.came_by):
        return _allow(case, rule)  # it is for what no zone let pass: Docker puts its bridges into a zone that does
    if whose in owned:
        return owned[whose]
    if whose not in (None, "a person") or case.space is None:
        return None
    text = rule.rule or ""
    if _of_iptables(rule) and text.startswith("-A "):
        return case.run(case.space, f"{_tool(case, rule)} -t {rule.table} -D {text[3:]}")
    if rule.handle and not _of_iptables(rule):
        return case.run(case.space, f"nft delete rule {rule.family} {shlex.quote(rule.table)} {shlex.quote(rule.chain)} "
                                    f"handle {rule.handle}")
    return None


def _allow(case: Case, rule: Rule) -> str | None:
    """A rule that lets such packets pass."""
    last, packet = case.last, case.packet
    if last is None or case.space is None:
        return None
    here = case.came_by if case.stage in (Stage.INPUT, Stage.FORWARD) else None
    there = case.goes_by if case.stage in (Stage.OUTPUT, Stage.FORWARD) else None
    ports = packet.dport is not None and case.stage is Stage.INPUT
    ufw = _whose(rule) == "ufw" or (rule.policy and any(_whose(r) == "ufw" for r in last.rules))
    if ufw and case.stage is Stage.INPUT and here:
        port = f" to any port {packet.dport} proto {packet.proto}" if ports else ""
        return f"ufw allow in on {shlex.quote(here)}{port}"
    if _whose(rule) == "firewalld" and here:
        return f"firewall-cmd --zone=docker --change-interface={shlex.quote(here)}"
    if _of_iptables(rule):
        user = case.stage is Stage.FORWARD and any(r.chain == "DOCKER-USER" for r in last.rules)
        return case.run(case.space, " ".join(filter(None, (
            _tool(case, rule), f"-t {rule.table}" if rule.table != "filter" else "",
            f"-I {'DOCKER-USER' if user else last.stage.value.upper()}", here and f"-i {shlex.quote(here)}",
            there and f"-o {shlex.quote(there)}", f"-p {packet.proto} --dport {packet.dport}" if ports else "",
            "-j ACCEPT"))))
    base = next((r.chain for r in last.rules if (r.family, r.table) == (rule.family, rule.table)), rule.chain)
    return case.run(case.space, "nft insert rule " + shlex.quote(" ".join(filter(None, (
        rule.family, rule.table, base, here and f'iifname "{here}"', there and f'oifname "{there}"',
        f"{packet.proto} dport {packet.dport}" if ports else "", "accept")))))


# devices that are down -----------------------------------------------------------------------------------------------------


def _waits(case: Case) -> bool:
    """It never left the place where its next hop's MAC address was looked up."""
    end, last = case.journey.end, case.last
    if end.result is Result.UNKNOWN:
        stages = (Stage.POSTROUTING, Stage.OUTPUT, Stage.ROUTE, Stage.NEIGHBOR)
        return bool(case.silent and last and last.stage in stages and not end.function)
    return case.by("NEIGH_FAILED", "NEIGH_QUEUEFULL", functions=(
        "neigh_invalidate", "neigh_timer_handler", "arp_error_report", "ndisc_error_report", "__neigh_event_send",
        "neigh_event_send"))


def _sides(case: Case) -> list[tuple[Namespace, Link]]:
    """The devices of the packet's source and target on their bridges."""
    first = next((h for h in case.journey.hops if h.stage is Stage.EGRESS or h.route), None)
    goal = parsed(case.packet.dst)
    found = [(case.source, case.source.by_name(first.device) if case.source and first and first.device else None),
             (case.target, case.target.owner_of(goal) if case.target and goal else None)]
    return [(namespace, link) for namespace, link in found if namespace and link and not link.loopback]


_NO_PORT = ("br_handle_frame_finish", "__br_forward", "br_forward")


def _switching(case: Case) -> bool:
    """Was it dropped where a bridge or a device may have had no way on for it?"""
    return _waits(case) or case.by("NO_TX_TARGET", "OTHERHOST", "DEV_READY", functions=(
        *_NO_PORT, "br_dev_queue_push_xmit", "__dev_forward_skb2", "noop_enqueue"))


@cause
def bridge_down(case: Case) -> Found:
    if not (case.lost or case.silent) or case.journey.kind not in ("request", "reply", "arp", "relay"):
        return None
    stopped = case.by("BRIDGE_INGRESS_STP_STATE", functions=("br_handle_frame",))
    astray = case.by("IP_INNOROUTES", "IP_OUTNOROUTES", "IP_INADDRERRORS", functions=("ip_error", "ip6_pkt_discard"))
    if not stopped and ((case.dropped and not (astray or _switching(case))) or (case.target and case.reached(case.target))):
        return None
    for namespace, link in _sides(case):
        on = (namespace, link) if link.kind == "bridge" else case.bridge_of(namespace, link)
        if on and not on[1].up:
            where = case.name(on[0])
            return (sentences.bridge_down(on[1], where), [f"{on[1].name}: state down (ip link)"],
                    case.run(on[0], "ip link set {} up", on[1].name))
    return None


@cause
def port_down(case: Case) -> Found:
    target = case.target
    if not case.silent or target is None or case.reached(target) or (case.dropped and not _switching(case)):
        return None
    goal = parsed(case.packet.dst)
    inner = target.owner_of(goal) if goal else None
    port = case.outer(inner)
    if inner is None or port is None or port[1].master is None:
        return None
    for namespace, link in (port, (target, inner)):
        if not link.up:
            return (sentences.link_down(link, case.name(namespace), case.name(target)),
                    [f"{link.name}: state down (ip link)"], case.run(namespace, "ip link set {} up", link.name))
    return None


# routing ----------------------------------------------------------------------------------------------------------------


@cause
def forwarding_off(case: Case) -> Found:
    space, route = case.space, case.route
    functions = ("ip_error", "ip6_forward", "ip_forward")
    if not case.by("IP_INADDRERRORS", functions=functions) or space is None or not route or not route.device:
        return None
    setting = _forwarding(case)
    if case.sysctl(space, setting) != "0":
        return None
    whole = "net.ipv4.ip_forward"
    name = whole if case.version == 4 and case.sysctl(space, whole) == "0" else setting
    if case.at_host or case.container(space) is None:
        sentence = sentences.no_forwarding(case.name(space), name)
    else:
        sentence = f"{case.name(space)} got a packet that is not for it, and containers do not forward: {name} is 0."
    return sentence, [f"{setting} = 0"], case.run(space, "sysctl -w {}", f"{name}=1")


def _forwarding(case: Case) -> str:
    return "net.ipv6.conf.all.forwarding" if case.version == 6 else f"net.ipv4.conf.{_dots(case.came_by)}.forwarding"


def _dots(device: str | None) -> str:
    return (device or "all").replace(".", "/")


@cause
def route_refuses(case: Case) -> Found:
    route, space = case.route, case.space
    if not (case.dropped and route and space and route.kind in ("blackhole", "prohibit", "unreachable")):
        return None
    row = f"{route.kind} {_prefix(route.destination)}"
    table = "" if route.table in ("main", "local") else f" table {route.table}"
    six = "-6 " if case.version == 6 else ""
    return (f"A route of {case.name(space)} refuses it: {row}, in table {route.table}.",
            [f"the lookup of {case.packet.dst} failed, and {row} is the row for it"],
            case.run(space, f"ip {six}route del {row}{table}"))


def _prefix(destination: str | None) -> str:
    destination = destination or ""
    return "default" if destination in ("0.0.0.0/0", "::/0") else destination.removesuffix("/32").removesuffix("/128")


@cause
def no_route(case: Case) -> Found:
    space, route = case.space, case.route
    if not (case.by("IP_INNOROUTES", "IP_OUTNOROUTES", "IP_INADDRERRORS", functions=(
            "ip_error", "ip6_pkt_discard", "ip6_pkt_drop", "ip6_pkt_discard_out")) and space and route):
        return None
    if route.kind in ("local", "unicast", "blackhole", "prohibit", "unreachable") or not _failed(case.route_hop):
        return None
    goal, six = parsed(case.packet.dst), "-6 " if case.version == 6 else ""
    seen = case.route_hop.detail if case.route_hop else ""
    if goal and (row := next(iter(rows(space, goal)), None)) and row.kind == "unicast":
        if rule := _refusing(space, parsed(case.packet.src), goal):
            only = f"concluded: it is the only row there that refuses packets from {case.packet.src} to {goal}"
            return Cause("route_refuses", sentences.rule_refuses(rule, case.name(space)), (seen, only),
                         case.run(space, f"ip {six}rule del {rule.words} priority {rule.priority}"))
        return (sentences.lookup_ended(case.name(space), str(goal), _prefix(str(row.destination))), [seen],
                case.run(space, f"ip {six}rule"))
    down = [link.name for link in space.links.values() if not link.up and any(
        goal and goal in i.network for i in link.addresses)]
    lost = [link.name for link in space.links.values() if not link.up and link.kind != "bridge" and link.addresses]
    known = [seen, *(f"{name} = 0" for name in (_forwarding(case),) if case.sysctl(space, name) == "0")]
    if lost and not down:
        up, add = case.run(space, "ip link set {} up", lost[0]), case.run(space, f"ip {six}route add default via GATEWAY")
        return (f"{case.name(space)} has no route to {case.packet.dst}: {lost[0]} is down, and its routes went with it.",
                [*known, f"{lost[0]}: state down (ip link)"], f"{up} && {add}")
    return (f"{case.name(space)} has no route to {case.packet.dst}" + (
        f": {down[0]}, whose subnet it is in, is down." if down else "."), known,
            case.run(space, "ip link set {} up", down[0]) if down else
            case.run(space, f"ip {six}route add {case.packet.dst} via GATEWAY"))


def _refusing(space: Namespace, source: Address | None, goal: Address) -> PolicyRule | None:
    """The only one that may refuse it, where it says by what."""
    found = [rule for rule in space.rules if rule.version == goal.version and not rule.table and rule.fits(source, goal)]
    return found[0] if len(found) == 1 and not found[0].inverted else None


def _failed(hop: Hop | None) -> bool:
    """Did the lookup find nothing?"""
    return bool(hop and hop.route and hop.route.kind is None and (hop.detail.startswith("no route") or not hop.route.device))


@cause
def reverse_path(case: Case) -> Found:
    space, device = case.space, case.came_by
    if not case.by("IP_RPFILTER") or space is None:
        return None
    source = parsed(case.packet.src)
    row = next(iter(rows(space, source)), None) if source else None
    expected = space.links.get(row.ifindex) if row and row.ifindex else None
    read = {name: value for name in ("all", _dots(device))
            if (value := case.sysctl(space, f"net.ipv4.conf.{name}.rp_filter"))}
    strict = [name for name, value in read.items() if value == "1"] or [_dots(device)]
    way = f"its route to {case.packet.src} leads by {expected.name}" if expected and expected.name != device else \
        f"it has no route to {case.packet.src} by {device}"
    return (f"{case.name(space)} does not believe that {case.packet.src} is behind {device}: {way}, and the reverse path "
            "filter is on.",
            (*(f"net.ipv4.conf.{name}.rp_filter = {value}" for name, value in read.items()),
             *([f"route {row.destination} dev {expected.name}"] if row and expected else [])),
            case.run(space, "sysctl -w" + " {}" * len(strict), *(f"net.ipv4.conf.{name}.rp_filter=2" for name in strict)))



@cause
def source_is_own(case: Case) -> Found:
    space = case.space
    if not case.by("IP_LOCAL_SOURCE") or space is None:
        return None
    link = next((link for link in space.links.values() if any(str(i.ip) == case.packet.src for i in link.addresses)), None)
    return (f"Its source {case.packet.src} is an address of {case.name(space)} itself, which received it by {case.came_by}: "
            "two hosts have this address, or somebody forges it.",
            [f"{link.name} of {case.name(space)} has {case.packet.src}"] if link else [], None)


@cause
def martian(case: Case) -> Found:
    said = {"IP_LOCALNET": "a loopback address came in from outside",
            "IP_INVALID_SOURCE": f"no packet may come from {case.packet.src}",
            "IP_INVALID_DEST": f"no packet may go to {case.packet.dst}"}.get(case.journey.end.reason or "")
    if not (case.dropped and said and case.space):
        return None
    local = case.journey.end.reason == "IP_LOCALNET"
    setting = f"net.ipv4.conf.{_dots(case.came_by)}.route_localnet"
    return (f"{case.name(case.space)} refuses the packet's addresses: {said}.",
            [f"{case.packet.src} to {case.packet.dst}",
             *([f"{setting} = {value}"] if local and (value := case.sysctl(case.space, setting)) else [])],
            case.run(case.space, "sysctl -w {}", f"{setting}=1") if local else None)


@cause
def ttl_expired(case: Case) -> Found:
    if not (case.by("IP_INHDR") and case.journey.end.function in ("ip_forward", "ip6_forward") and case.space):
        return None
    word = "hop limit" if case.version == 6 else "time to live"
    return (f"Its {word} was used up at {case.name(case.space)}, which would have passed it on to {case.goes_by}.",
            [f"it was sent with a {word} of {case.journey.packet.ttl}"], "send it with a higher --ttl")


@cause
def route_mtu_too_small(case: Case) -> Found:
    space, device = case.space, case.goes_by
    link = space.by_name(device) if space and device else None
    if not case.by("PKT_TOO_BIG", functions=("ip_forward", "ip6_forward")) or link is None or space is None:
        return None
    if case.journey.packet.length <= link.mtu:
        return None
    why = "IPv6 routers do not fragment" if case.version == 6 else "its DF bit forbids to fragment it"
    return (f"It has {case.journey.packet.length} bytes, and {link.name} of {case.name(space)} takes {link.mtu}; {why}.",
            [f"MTU of {link.name}: {link.mtu}", f"length of the packet: {case.journey.packet.length}"],
            f"give the containers' network the MTU {link.mtu} (`{_client(case)} network create -o "
            f"{engine_words(case.topology).mtu}={link.mtu}`" + (
                f"; for docker0, \"mtu\": {link.mtu} in daemon.json)" if _client(case) == "docker" else ")"))


# bridge and devices -----------------------------------------------------------------------------------------------------


@cause
def port_blocked(case: Case) -> Found:
    if not case.by("BRIDGE_INGRESS_STP_STATE", "NO_TX_TARGET", functions=("br_handle_frame", "br_handle_frame_finish",
                                                                          "__br_forward")):
        return None
    sides = [port for side in _sides(case) if (port := case.outer(side[1]))]
    for namespace, link in sides:
        if link.up and link.carrier and link.port and link.port.state not in ("forwarding", "disabled"):
            return (sentences.port_blocked(link), [f"{link.name}: state {link.port.state} (bridge link)"],
                    case.run(namespace, "bridge link set dev {} state 3", link.name))
    return None


@cause
def ports_isolated(case: Case) -> Found:
    ports = [port for side in _sides(case) if (port := case.outer(side[1]))]
    if len(ports) < 2 or not (case.by("NO_TX_TARGET", functions=_NO_PORT) or (_waits(case) and case.silent)):
        return None
    (namespace, one), (_, other) = ports
    if one == other or one.master != other.master or not all(link.port and link.port.isolated for link in (one, other)):
        return None
    return (f"{one.name} and {other.name} are isolated ports: their bridge passes nothing between them.",
            [f"{link.name}: isolated on (bridge -d link)" for link in (one, other)],
            case.run(namespace, "bridge link set dev {} isolated off", other.name))


@cause
def flood_off(case: Case) -> Found:
    asked = _unanswered(case)
    goal = case.next_hop if asked else case.packet.dst
    owner, address = case.having(goal), parsed(goal)
    link = owner.owner_of(address) if owner and address else None
    port = case.outer(link)
    if owner is None or link is None or port is None or port[1].port is None:
        return None
    space, (name, of_port) = port[0], (port[1].name, port[1].port)
    if asked:
        flag, on, what = ("mcast_flood", of_port.mcast_flood, "multicasts") if case.version == 6 else (
            "bcast_flood", of_port.bcast_flood, "broadcasts")
        lacks = not any(hop.netns == owner.netns for question in case.questions(goal)
                        for way in (question, *_copies(case, question)) for hop in way.hops)
    else:
        flag, on, what = "flood", of_port.flood, f"frames for a MAC that the bridge has not learned, such as {link.mac}"
        lacks = case.by("NO_TX_TARGET", functions=_NO_PORT) and not any(
            row.mac == link.mac and row.bridge == port[1].master for row in space.fdb)
    if on or not lacks:
        return None
    return (f"{name}, the bridge's port to {case.name(owner)}, is set to get no {what}" + (
        f": the question for {goal} was not seen there." if asked else "."),
            [*(_asking(case) if asked else ()), f"{name}: {flag} off (bridge -d link)"],
            case.run(space, f"bridge link set dev {{}} {flag} on", name))


@cause
def hairpin_off(case: Case) -> Found:
    if not case.by("NO_TX_TARGET", functions=_NO_PORT) or case.target is None or case.target is not case.source:
        return None
    inner = next((link for _namespace, link in _sides(case)[1:]), None)
    port = case.outer(inner)
    if port is None or port[1].port is None or port[1].port.hairpin:
        return None
    name = port[1].name
    return (f"{case.name(case.target)} reaches itself through its bridge, but a frame may not leave by the port that it "
            f"came by: {name} has no hairpin mode.", [f"{name}: hairpin off (bridge -d link)"],
            case.run(port[0], "bridge link set dev {} hairpin on", name))


@cause
def port_mtu_too_small(case: Case) -> Found:
    functions = ("br_dev_queue_push_xmit", "br_nf_dev_queue_xmit", "__dev_forward_skb2", "__dev_forward_skb", "veth_xmit",
                 "ip6_fragment", "ip_fragment")
    if not case.by("PKT_TOO_BIG", functions=functions) or case.space is None or route_mtu_too_small(case):
        return None
    ends = [(case.space, case.device), case.outer(case.device) or (case.space, None)]
    length = case.journey.packet.length
    for namespace, link in ends:
        if link and link.mtu < length:
            mtu = max((other.mtu for _, other in _sides(case)), default=length)
            quiet = "" if case.errors else ": a bridge drops what does not fit, and tells nobody"
            return (f"The packet has {length} bytes, and {link.name} takes no more than {link.mtu}{quiet}.",
                    [f"MTU of {link.name}: {link.mtu}", f"length of the packet: {length}"],
                    case.run(namespace, "ip link set {} mtu {}", link.name, str(max(mtu, length))))
    return None


@cause
def no_carrier(case: Case) -> Found:
    """The queue of such a device drops all (noop_qdisc)."""
    space, device = case.space, case.journey.end.device
    link = space.by_name(device) if space and device else None
    if not case.by("QDISC_DROP", functions=("noop_enqueue", "__dev_queue_xmit")) or space is None or link is None \
            or not link.up or link.carrier:
        return None
    name, owner = f"{link.name} of {case.name(space)}", case.topology.namespaces.get(link.peer.netns) if link.peer else None
    other, seen = owner.links.get(link.peer.ifindex) if owner and link.peer else None, [f"{link.name}: NO-CARRIER (ip link)"]
    if owner and other and not other.up:
        return (f"{name} has no carrier: {other.name} of {case.name(owner)}, its other end, is down.", seen,
                case.run(owner, "ip link set {} up", other.name))
    return f"{name} has no carrier: no cable, or its other end is down.", seen, "plug its cable in, or set its other end up"


@cause
def wrong_mac(case: Case) -> Found:
    if not case.silent or case.journey.kind not in ("request", "reply") or not (
            case.by("OTHERHOST", functions=("ip_rcv_core", "ip_rcv", "ip6_rcv_core")) or (
                not case.dropped and any(h.stage is Stage.L2_FLOOD for h in case.journey.hops))):
        return None
    source = case.source
    first = next((h.route for h in case.journey.hops if h.route and source and h.netns == source.netns), None)
    hop = (first.gateway if first else None) or case.packet.dst
    row = next((n for n in source.neighbors if str(n.address) == hop and n.mac), None) if source else None
    device = source.links.get(row.ifindex) if source and row else None
    if source is None or row is None or device is None:
        return None
    goal, owner = parsed(hop), case.having(hop)
    has = owner.owner_of(goal) if owner and goal else None
    if any(link.mac == row.mac for n in case.topology.namespaces.values() for link in n.links.values()):
        return None  # somebody has it: it may be right
    whose = f"{case.name(owner)} has {has.mac}" if owner and has else f"nobody known has {hop}"
    return (f"{case.name(source)} sends it to the MAC {row.mac}, which no device known has: its neighbour table says that "
            f"this is {hop}, while {whose}.", [f"{hop} lladdr {row.mac} {row.state} (ip neigh of {case.name(source)})"],
            case.run(source, "ip neigh del {} dev {}", hop, device.name))


def _double(case: Case, side: tuple[Namespace, Link], same: Callable[[Link], bool]) -> tuple[Namespace, str] | None:
    """Another on its bridge that has a device like it, and the bridge's name."""
    on = case.bridge_of(*side)
    return next(((namespace, on[1].name) for namespace in case.topology.namespaces.values() for link in
                 namespace.links.values() if link is not side[1] and same(link) and on and
                 (other := case.bridge_of(namespace, link)) and other[1] is on[1]), None)


def _has_mac(mac: str, link: Link) -> bool:
    return link.mac == mac


@cause
def mac_twice(case: Case) -> Found:
    if case.rule or not (_switching(case) or (case.silent and not case.dropped)):
        return None
    for namespace, own in _sides(case):
        found = _double(case, (namespace, own), partial(_has_mac, own.mac)) if own.mac else None
        if found:
            names = case.name(namespace), case.name(found[0])
            return (sentences.same_mac(names, own.mac, found[1]), [f"{name} has {own.mac} (ip link)" for name in names],
                    "create one of them anew with another --mac-address, or without")
    return None


@remark
@cause
def address_twice(case: Case) -> Found:
    goal = parsed(case.packet.dst)
    having = case.space if case.space and case.space.has(case.packet.dst) else case.target
    own = having.owner_of(goal) if having and goal else None
    if case.rule or not (case.delivered or case.silent) or having is None or own is None:
        return None
    found = _double(case, (having, own), lambda link: any(i.ip == goal for i in link.addresses))
    if found is None:
        return None
    names = case.name(having), case.name(found[0])
    return (sentences.same_address(names, goal, found[1]), [f"{name} has {goal} (ip address)" for name in names],
            "give one of them another address")


# neighbours -------------------------------------------------------------------------------------------------------------


def _asking(case: Case) -> list[str]:
    asked = case.questions(case.next_hop)
    times = f"{len(asked)} times" if len(asked) > 1 else "once"
    word = "neighbour discovery" if case.version == 6 else "ARP"
    who = case.name(case.space) if case.space else "the sender"
    return [f"{who} asked {times} for the MAC of {case.next_hop} by {word}; no answer was seen"] if asked else []


def _unanswered(case: Case) -> bool:
    return _waits(case) and bool(_asking(case)) and not case.told(case.next_hop)


@cause
def question_lost(case: Case) -> Found:
    """The lookup itself was dropped: its cause is this packet's, too."""
    if not _unanswered(case):
        return None
    owner = case.having(case.next_hop)
    for question in case.questions(case.next_hop):
        ways = [question, *_copies(case, question)]
        if owner and any(hop.netns == owner.netns for way in ways for hop in way.hops):
            continue
        for way in ways:
            found = causes(replace(case, journey=way)) if way.end.result is Result.DROPPED else ()
            if found:
                return replace(found[0], evidence=(*_asking(case), *found[0].evidence))
    return None


def _copies(case: Case, question: Journey) -> list[Journey]:
    """Those that a bridge sent out by its ports, with their way up to there: the original itself went up to the host."""
    up = next((at for at, hop in enumerate(question.hops) if hop.stage is Stage.L2_LOCAL), len(question.hops))
    return [replace(copy, hops=(*question.hops[:up], *copy.hops)) for copy in case.others
            if copy.kind == "copy" and copy.parent == question.id]


@cause
def bridge_without_address(case: Case) -> Found:
    bridge = _bridge_asked(case)
    if bridge is None or case.having(case.next_hop) or not (case.route and case.route.gateway == case.next_hop):
        return None
    if any(i.version == case.version and not i.ip.is_link_local for i in bridge[1].addresses):
        return None
    network, goal = case.network(bridge[1].name), parsed(case.next_hop)
    subnet = next((s for s in network.subnets if goal in s), None) if network else None
    length = subnet.prefixlen if subnet else "PREFIX"
    return (sentences.no_bridge_address(bridge[1], case.name(bridge[0]), case.version, case.next_hop),
            (*_asking(case), f"{bridge[1].name}: no address (ip address)"),
            case.run(bridge[0], "ip address add {} dev {}", f"{case.next_hop}/{length}", bridge[1].name))


def _bridge_asked(case: Case) -> tuple[Namespace, Link] | None:
    """The bridge on which the address was asked for in vain."""
    device = case.route.device if case.route else None
    link = case.space.by_name(device) if case.space and device else None
    if not _unanswered(case) or link is None or case.space is None:
        return None
    return (case.space, link) if link.kind == "bridge" else case.bridge_of(case.space, link)


@cause
def wrong_gateway(case: Case) -> Found:
    gateway, space = case.route.gateway if case.route else None, case.space
    if not _unanswered(case) or gateway is None or space is None or case.having(gateway) or bridge_without_address(case):
        return None
    bridge, six = _bridge_asked(case), "-6 " if case.version == 6 else ""
    own = next((str(i.ip) for i in bridge[1].addresses if i.version == case.version and not i.ip.is_link_local), None) \
        if bridge else None
    dev = case.route.device if case.route else None
    row = _prefix(case.route.destination) if case.route else "default"
    return (f"The gateway {gateway} of {case.name(space)}'s route ({row} via {gateway} dev {dev}) does not answer, and "
            "nobody known has its address.", _asking(case),
            case.run(space, f"ip {six}route replace {row} via {own} dev {{}}", dev) if own and dev else None)


@cause
def neighbor_elsewhere(case: Case) -> Found:
    owner, bridge, goal = case.having(case.next_hop), _bridge_asked(case), parsed(case.next_hop)
    link = owner.owner_of(goal) if owner and goal else None
    if owner is None or bridge is None or link is None:
        return None
    other = (owner, link) if link.kind == "bridge" else case.bridge_of(owner, link)
    if other is None or (other[0].netns, other[1].ifindex) == (bridge[0].netns, bridge[1].ifindex):
        return None
    return (f"{case.titled(owner)} has {case.next_hop}, but on {other[1].name}, and the question went round on "
            f"{bridge[1].name}: two networks use the same subnet.", _asking(case), _connect(case))


@cause
def neighbor_does_not_answer(case: Case) -> Found:
    owner, goal = case.having(case.next_hop), parsed(case.next_hop)
    link = owner.owner_of(goal) if owner and goal else None
    if not _unanswered(case) or owner is None or link is None or not any(
            h.netns == owner.netns for q in case.questions(case.next_hop) for h in q.hops):
        return None
    names = [f"net.ipv4.conf.{name}.arp_ignore" for name in ("all", _dots(link.name))] if case.version == 4 else []
    read = {name: value for name in names if (value := case.sysctl(owner, name)) not in (None, "0")}
    return (f"{case.name(owner)} got the question for {case.next_hop}, its own address, and did not answer" + (
        ": arp_ignore tells it not to." if read else "."),
            (*_asking(case), *(f"{name} = {value} in {case.name(owner)}" for name, value in read.items())),
            case.run(owner, "sysctl -w" + " {}" * len(read), *(f"{name}=0" for name in read)) if read else None)


@cause
def nobody_has_address(case: Case) -> Found:
    bridge = _bridge_asked(case)
    if not _unanswered(case) or case.having(case.next_hop) or (case.route and case.route.gateway):
        return None
    where = f" on {bridge[1].name}" if bridge else ""
    return (f"Nobody{where} answers for {case.next_hop}: no container or namespace known has this address.", _asking(case),
            f"check the address: `{_client(case)} network inspect` lists those of each network's containers")


# transport --------------------------------------------------------------------------------------------------------------


def _refused(case: Case) -> bool:
    return case.packet.proto in ("tcp", "udp") and case.journey.kind in ("request", "relay") and case.by(
        "NO_SOCKET", functions=("tcp_v4_rcv", "tcp_v6_rcv", "__udp4_lib_rcv", "__udp6_lib_rcv"))


@cause
def published_elsewhere(case: Case) -> Found:
    if not (_refused(case) and case.at_host):
        return None
    found = list(case.published(case.packet.dport, case.packet.proto))
    if not found or any(_holds(port.host_ip, case.packet.dst) for _, port in found):
        return None
    container, port = found[0]
    return (f"{container.name} publishes this port on {port.host_ip} only, and the packet is for {case.packet.dst}.",
            [f"{container.name} publishes {port.container_port}/{port.protocol} at {port.host_ip}:{port.host_port}"],
            f"create {container.name} anew with `-p {port.host_port}:{port.container_port}`, or ask at {port.host_ip}")


def _holds(own: Address | None, address: str) -> bool:
    """Is what is bound or published at `own` reached at this address?"""
    return own is None or str(own) == address or (own.is_unspecified and (own.version == 6 or ":" not in address))


@cause
def listens_elsewhere(case: Case) -> Found:
    if not _refused(case) or case.space is None or published_elsewhere(case):
        return None
    packet = case.packet
    found = [x.address for x in case.space.listeners or () if (x.port, x.protocol) == (packet.dport, packet.proto)]
    if not found or any(_holds(address, packet.dst) for address in found):
        return None
    addresses = ", ".join(map(str, found))
    return (f"The program in {case.name(case.space)} listens on {addresses} only, and the packet is for {packet.dst}.",
            [f"{packet.proto} port {packet.dport} is open on {addresses} (ss -ln)"],
            f"let the program listen on {'::' if case.version == 6 else '0.0.0.0'}")


@cause
def nothing_listens(case: Case) -> Found:
    if not _refused(case) or case.space is None or listens_elsewhere(case) or published_elsewhere(case) \
            or docker_rules_missing(case):
        return None
    packet, name = case.packet, case.name(case.space)
    if any((x.port, x.protocol) == (packet.dport, packet.proto) and _holds(x.address, packet.dst)
           for x in case.space.listeners or ()):
        return None  # a drop without a reason has another
    meant = next(((c, p) for c in case.topology.containers for p in c.ports if case.at_host
                  and (p.container_port, p.protocol) == (packet.dport, packet.proto)), None)
    hint = f"; {meant[0].name} publishes its port {packet.dport} as {meant[1].host_port}" if meant else ""
    open_ports = sorted({x.port for x in case.space.listeners or () if x.protocol == packet.proto})
    evidence = ["the kernel found no socket for it"]
    if case.space.listeners is not None:
        evidence.append(f"{packet.proto} ports with a listener in {name}: {', '.join(map(str, open_ports[:10])) or 'none'}")
    return (f"Nothing listens on {packet.proto} port {packet.dport} in {name}{hint}.", evidence,
            f"ask for port {meant[1].host_port}" if meant else f"start the program in {name}, or ask for its port")


# Reasons that say all by themselves: cause, mend. DEVICE and NS stand for where it happened.
_BY_REASON = {
    **dict.fromkeys(("IP_CSUM", "TCP_CSUM", "UDP_CSUM", "ICMP_CSUM", "SKB_CSUM"),
                    ("bad_checksum", "find out who computes it: an offload of a device (`ethtool -K DEVICE tx off` at the "
                                     "sender) or the program that makes the packet")),
    **dict.fromkeys(("IP_INHDR", "HDR_TRUNC", "PKT_TOO_SMALL", "IPV6_BAD_EXTHDR"),
                    ("bad_header", "look at its bytes (`tcpdump -vvx`): lengths, options, the IP header's checksum")),
    **dict.fromkeys(("SOCKET_RCVBUFF", "SOCKET_BACKLOG", "PROTO_MEM", "TCP_LISTEN_OVERFLOW"),
                    ("socket_full", "let the program read faster, or give its socket a larger buffer or backlog")),
    "SOCKET_FILTER": ("socket_filter", "look at the filter of the program's socket: `ss -lnp --bpf`"),
    "TC_INGRESS": ("tc_drop", "tc filter show dev DEVICE ingress"),
    "TC_EGRESS": ("tc_drop", "tc filter show dev DEVICE egress"),
    "XDP": ("xdp_drop", "ip link set dev DEVICE xdp off"),
    "BPF_CGROUP_EGRESS": ("cgroup_program", "bpftool cgroup tree"),
    "XFRM_POLICY": ("ipsec_policy", "ip xfrm policy"),
    "SECURITY_HOOK": ("security_module", "look for denials in the audit log"),
    "IPV6DISABLED": ("ipv6_disabled", "sysctl -w net.ipv6.conf.DEVICE.disable_ipv6=0"),
    **dict.fromkeys(("QDISC_DROP", "QDISC_OVERLIMIT", "QDISC_CONGESTED", "FULL_RING", "CAKE_FLOOD", "FQ_BAND_LIMIT",
                     "FQ_FLOW_LIMIT"), ("queue_full", "tc -s qdisc show dev DEVICE")),
    "CPU_BACKLOG": ("queue_full", "sysctl net.core.netdev_max_backlog"),
    "DEV_READY": ("device_not_ready", "ip link show dev DEVICE"),
    **dict.fromkeys(("NOMEM", "PFMEMALLOC"), ("no_memory", None)),
}


def _by_reason(name: str) -> Check:
    def check(case: Case) -> Found:
        end = case.journey.end
        known, mend = _BY_REASON.get(end.reason or "", ("", None))
        if not case.dropped or known != name or case.space is None or ttl_expired(case) or no_carrier(case):
            return None
        words = WORDS[end.reason or ""]
        return (f"{words[0].upper()}{words[1:]}, in {case.name(case.space)}.", [f"{end.reason}, {place(end.function)}"],
                case.run(case.space, mend.replace("DEVICE", shlex.quote(end.device or "DEVICE")))
                if mend and mend.startswith(("tc ", "ip ", "sysctl ")) else mend)

    check.__name__ = name
    return check


for _name in dict.fromkeys(name for name, _mend in _BY_REASON.values()):
    cause(_by_reason(_name))


# silence ----------------------------------------------------------------------------------------------------------------


def _unreplied(case: Case) -> bool:
    """The request got there, and no reply is known of."""
    return case.silent and case.request and case.delivered and not case.replies


@cause
def echo_ignored(case: Case) -> Found:
    name = "net.ipv6.icmp.echo_ignore_all" if case.version == 6 else "net.ipv4.icmp_echo_ignore_all"
    taken = case.delivered or case.by(functions=("icmp_echo", "icmp_rcv", "icmpv6_rcv"))
    if not (case.silent and case.request and not case.replies and case.packet.icmp_type in (8, 128) and case.space
            and taken and case.sysctl(case.space, name) == "1"):
        return None
    return (f"{case.name(case.space)} got the echo request and is set to answer none.", [f"{name} = 1"],
            case.run(case.space, f"sysctl -w {name}=0"))


@cause
def container_paused(case: Case) -> Found:
    container = case.container(case.space) if case.space else None
    if not _unreplied(case) or container is None or container.state != "paused" or case.packet.proto not in ("tcp", "udp"):
        return None
    return (f"{container.name} is paused: the packet waits in its socket, and no program runs to read it.",
            [f"the engine calls {container.name} paused"], f"{_client(case)} unpause {container.name}")


@cause
def source_not_translated(case: Case) -> Found:
    return None if _untracked(case) else _private_source(case)


def _private_source(case: Case) -> Found:
    host, source = case.host, parsed(case.packet.src)
    arrived = case.delivered or case.journey.end.result is Result.LEFT
    if not (case.silent and case.request and arrived and host and source and source.is_private) or case.replies:
        return None
    out = [h for h in case.journey.hops if h.netns == host.netns and h.stage is Stage.EGRESS]
    device = host.by_name(out[-1].device or "") if out else None
    inside = next((i for link in host.links.values() if link.kind == "bridge" for i in link.addresses
                   if source in i.network), None)
    if device is None or inside is None or device.kind == "bridge" or device.master or any(
            h.rewrite and h.rewrite.src for h in case.journey.hops) or host.has(case.packet.src):
        return None
    end = case.space
    if invalid_skips_nat(case) or (case.delivered and end and not case.no_way(end, case.packet.src)):
        return None  # who has it knows a way back
    bridge = next(link for link in host.links.values() if inside in link.addresses)
    network = case.network(bridge.name)
    off = " (its network is set to that)" if network and not network.masquerade else ""
    six = "6" if case.version == 6 else ""
    return (f"It left by {device.name} with {case.journey.source}'s own address {source}{off}, to which nobody outside of "
            "this host knows a way back: no MASQUERADE rule changed it.",
            ["its source address did not change at the host", *([f"{case.name(end)} has no route to {source}"]
                                                                  if case.delivered and end else [])],
            case.run(host, f"ip{six}tables -t nat -A POSTROUTING -s {inside.network} ! -o {{}} -j MASQUERADE", bridge.name))


@cause
def no_way_back(case: Case) -> Found:
    target = case.space
    if not _unreplied(case) or target is None or not case.no_way(target, case.packet.src) or _private_source(case):
        return None
    six, goal = "-6 " if case.version == 6 else "", parsed(case.packet.src)
    gateway = next((str(i.ip) for link in target.links.values() if (on := case.bridge_of(target, link))
                    for i in on[1].addresses if i.version == case.version and not i.ip.is_link_local), None)
    return (f"{case.name(target)} got it and has no route back to {case.packet.src}.",
            [f"no row of its routes holds {goal}"],
            case.run(target, f"ip {six}route add default via {gateway or 'GATEWAY'}"))


@cause
def invalid_skips_nat(case: Case) -> Found:
    hop = next((h for h in case.journey.hops if h.conntrack == "INVALID"), None)
    if hop is None or not (case.dropped or case.silent) or any(h.rewrite for h in case.journey.hops):
        return None
    if case.journey.kind not in ("request", "reply", "error"):
        return None
    return (f"Connection tracking of {hop.node} calls it INVALID, as it fits no connection that it follows: NAT left its "
            "addresses as they were.",
            [f"conntrack INVALID at {hop.stage.value} of {hop.node}", f"source still {case.packet.src}"], None)


@cause
def reply_other_way(case: Case) -> Found:
    request = next(iter(case.of_kind("request")), None)
    if case.journey.kind != "reply" or not (case.silent or case.dropped) or request is None or not request.hops:
        return None
    here = case.journey.hops[0].netns if case.journey.hops else 0
    came = next((h for h in reversed(request.hops) if h.netns == here and h.stage is Stage.INGRESS), None)
    went = next((h for h in case.journey.hops if h.netns == here and h.stage is Stage.EGRESS), None)
    if came is None or went is None or (came.bridge or came.device) == (went.bridge or went.device):
        return None
    route = next((h.detail for h in case.journey.hops if h.route and h.netns == here), "")
    return (f"{went.node} got the request by {came.device} and answers by {went.device}: who asked, and what translates "
            "addresses on the way, may never see the reply.", [f"its route back: {route}"] if route else [], None)


@last_resort
def program_silent(case: Case) -> Found:
    if not _unreplied(case) or case.packet.proto != "udp" or case.space is None:
        return None
    return (f"A program in {case.name(case.space)} was given the datagram and sent nothing back: many services ignore what "
            "they do not understand.", [case.journey.end.detail], None)


@last_resort
def beyond_this_host(case: Case) -> Found:
    if not (case.silent and case.journey.end.result is Result.LEFT and not case.replies and not case.errors):
        return None
    return (f"It left this host by {case.journey.end.device}, and nothing came back: the answer is to be looked for beyond.",
            ["no reply and no ICMP error was seen"], None)


@last_resort
def no_reply_seen(case: Case) -> Found:
    if not _unreplied(case) or case.space is None:
        return None
    return (f"{case.name(case.space)} got it, and no reply was seen to leave.",
            [case.journey.end.detail, *(f"not observed here: {m.name} ({m.why})" for m in case.missing)], None)


@last_resort
def not_observed(case: Case) -> Found:
    if not (case.silent and case.journey.end.result is Result.UNKNOWN and case.missing):
        return None
    return ("How it ended was not seen, and may be due to probes that this machine does not have.",
            [f"{m.name}: {m.why}" for m in case.missing], None)


# about what was delivered -----------------------------------------------------------------------------------------------


@remark
def untranslated(case: Case) -> Found:
    arrived = case.journey.end.result in (Result.DELIVERED, Result.RELAYED)
    return _not_translated(case) if arrived and not _untracked(case) else None


@remark
def input_not_met(case: Case) -> Found:
    host = case.host
    if not (case.request and case.delivered and not case.silent and host and host.chains):
        return None
    translated = [h.rewrite.dst for h in case.journey.hops if h.netns == host.netns and h.stage is Stage.PREROUTING
                  and h.rewrite and h.rewrite.dst]
    inputs = [c for c in host.chains if c.hook == "input" and c.family in ("inet", "ip" if case.version == 4 else "ip6")
              and c.table != "nat"]
    if not translated or not inputs or any(h.netns == host.netns and h.stage is Stage.INPUT for h in case.journey.hops):
        return None
    names = ", ".join(f"{c.table}/{c.name}" for c in inputs)
    before, after = translated[0]
    return (f"A published port is translated before routing and so forwarded: {names} of the host never met this packet. "
            "What a firewall such as ufw denies there stays open.", [f"destination {before} → {after} at PREROUTING"],
            "put rules about published ports into DOCKER-USER")


# before a packet --------------------------------------------------------------------------------------------------------


def explain_failure(number: str, source: Namespace, destination: str, topology: Topology) -> Cause | None:
    """Why no packet was made. `number`: name of the errno. None for EPERM: the journey tells by which rule."""
    if number == "EPERM":
        return None
    goal, name = parsed(destination), topology.node(source.netns)
    row = next(iter(rows(source, goal)), None) if goal else None
    container = next((c for c in topology.containers if c.name == name and c.network_mode != "host"), None)
    enter = f"nsenter --net={shlex.quote(source.path)} " if source.netns != topology.host else ""
    six = "-6 " if goal and goal.version == 6 else ""
    if row and row.kind in ("blackhole", "prohibit", "unreachable"):
        words = f"{row.kind} {_prefix(str(row.destination))}"
        return Cause("route_refuses", f"A route of {name} refuses it: {words}.", (f"the send failed: {number}",),
                     f"{enter}ip {six}route del {words}")
    if goal and row and number in ("ENETUNREACH", "EACCES", "EINVAL"):
        prefix, failed = _prefix(str(row.destination)), f"the send failed: {number}"
        if rule := _refusing(source, None, goal):
            return Cause("route_refuses", sentences.rule_refuses(rule, name), (
                failed, f"concluded: its tables have {prefix}, and no other row of `ip rule` may refuse it"),
                f"{enter}ip {six}rule del {rule.words} priority {rule.priority}")
        if number == "ENETUNREACH":
            return Cause("no_route_in_sender", sentences.lookup_ended(name, destination, prefix), (failed,),
                         f"{enter}ip {six}rule")
    if number not in ("ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL"):
        return Cause("send_refused", f"The kernel of {name} refused to send it.", (f"the send failed: {number}",))
    evidence = [f"the send failed: {number}"]
    if row is None:
        evidence.append(f"no route of {name} holds {destination}")
    networks = [n for n in topology.networks if container and n.name in {a.network for a in container.attachments}]
    down = next((link for link in source.links.values() if not link.up and not link.loopback), None)
    sentence = f"{name} has no route to {destination}: no packet was made."
    mend = f"{enter}ip {six}route add default via GATEWAY"
    if networks and all(n.internal for n in networks):
        names = ", ".join(n.name for n in networks)
        sentence = f"{name} is on {names} only, which is internal and gives it no default route: no packet was made."
        evidence.append(f"{names} was created with --internal")
        mend = f"{topology.client} network connect {shlex.quote(_open_network(topology) or 'NETWORK')} {name}"
    elif container and container.network_mode == "none":
        sentence = f"{name} runs without a network (--network none): no packet was made."
        mend = (f"{topology.client} network disconnect none {name} && "
                f"{topology.client} network connect {shlex.quote(_open_network(topology) or 'NETWORK')} {name}")
    elif down:
        sentence = f"{down.name} of {name} is down, and its routes with it: no packet was made."
        evidence.append(f"{down.name}: state down (ip link)")
        mend = f"{enter}ip link set {shlex.quote(down.name)} up"
    elif gateway := _gateway(source, topology, 6 if six else 4):
        mend = f"{enter}ip {six}route add default via {gateway}"
    return Cause("no_route_in_sender", sentence, tuple(evidence), mend)


def _gateway(source: Namespace, topology: Topology, version: int) -> str | None:
    """The address of a bridge that it hangs on."""
    for link in source.links.values():
        port = topology.link(link.peer.netns, link.peer.ifindex) if link.peer else None
        bridge = topology.link(link.peer.netns, port.master) if link.peer and port and port.master else None
        for i in bridge.addresses if bridge else ():
            if i.version == version and not i.ip.is_link_local and any(
                    i.network == ip_interface(str(own)).network for own in link.addresses):
                return str(i.ip)
    return None
