"""Whose rule is it? By the names that tools give their tables and chains, their comments, and the engine's own state.

None where nothing tells: a rule in a built-in chain may be anybody's. Names are those in each tool's source or manual.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tracer.model.journey import Hop, Journey, Rule, of_way
from tracer.model.topology import EngineNetwork, Topology

DOCKER, PODMAN, PERSON = "Docker", "podman", "a person"

# nftables' tables that belong to one tool as a whole.
TABLES = (
    (r"docker-bridges", DOCKER),  # its nftables backend, ip and ip6
    (r"netavark", PODMAN),
    (r"firewalld", "firewalld"),
    (r"kube-proxy", "kube-proxy"),
    (r"f2b-table", "fail2ban"),
    (r"libvirt_network", "libvirt"),
    (r"calico", "Calico"),
    (r"flannel-ipv[46]", "Flannel"),
    (r"lxd", "LXD"),
    (r"incus", "Incus"),
    (r"crowdsec6?", "CrowdSec"),
    (r"sshguard", "SSHGuard"),
    (r"wg-quick-.+", "wg-quick"),
    (r"io\.systemd\.nat", "systemd-networkd"),
)
# Chains, in whichever table. The first that fits counts.
CHAINS = (
    (r"DOCKER-USER|CNI-ADMIN", PERSON),  # left to people by the tool that made it
    (r"DOCKER(-(FORWARD|CT|BRIDGE|INTERNAL|INGRESS|ISOLATION(-STAGE-[12])?))?", DOCKER),
    (r"DOCKER_(OUTPUT|POSTROUTING)", f"{DOCKER}, its name server"),  # in a container
    (r"NETAVARK[-_].+", PODMAN),
    (r"CNI-.+", "CNI plugins"),
    (r"ufw-docker-.+", "ufw-docker"),
    (r"ufw6?-.+", "ufw"),
    (r"(INPUT|OUTPUT|FORWARD|PREROUTING|POSTROUTING)_direct", "firewalld, a direct rule"),
    (r"(INPUT|FORWARD|PREROUTING|POSTROUTING)_((IN|OUT)_)?ZONES(_SOURCE)?", "firewalld"),
    (r"FWD[IO]_.+|(IN|PRE|POST)_.+_(log|deny|allow|pre|post)", "firewalld"),  # of its iptables backend
    (r"KUBE-(ROUTER|POD-FW|NWPLCY)-.+", "kube-router"),
    (r"KUBE-(FIREWALL|KUBELET-CANARY)", "kubelet"),
    (r"KUBE-.+", "kube-proxy"),
    (r"cali-.+", "Calico"),
    (r"(OLD_)?CILIUM_.+", "Cilium"),
    (r"FLANNEL-.+", "Flannel"),
    (r"WEAVE(-.+)?", "Weave Net"),
    (r"LIBVIRT_.+", "libvirt"),
    (r"(f2b|fail2ban)-.+", "fail2ban"),
    (r"ts-(input|forward|postrouting)", "Tailscale"),
    (r"CROWDSEC_CHAIN(6|\..+)?", "CrowdSec"),
    (r"sshguard", "SSHGuard"),
    (r"MINIUPNPD(-.+)?", "miniupnpd"),
    (r"ISTIO_.+", "Istio"),
    (r"PROXY_INIT_.+", "Linkerd"),
    (r"neutron-.+", "OpenStack Neutron"),
)
# What tools write into the rules that they put into built-in chains, most of it as comments.
TEXTS = (
    (r'comment "?cali:', "Calico"),
    (r'comment "?cilium(-feeder)?: ', "Cilium"),
    (r'comment "?flanneld ', "Flannel"),
    (r'comment "?kubernetes ', "kube-proxy"),
    (r'comment "?CNI (firewall plugin|portfwd) ', "CNI plugins"),
    (r'comment "?generated for LXD ', "LXD"),
    (r'comment "?generated for Incus ', "Incus"),
    (r"match-set docker-ext-bridges-v[46] ", DOCKER),  # of Docker 27 and 28.0
)
_JUMP = re.compile(r"(?:jump|goto) (\S+)")
_DPORT = re.compile(r"(tcp|udp|sctp) (?:--)?dport (\d+)")
_DNAT = re.compile(r"(?:--to-destination|dnat(?: ip6?)? to) \[?([0-9a-f.:]+?)\]?:(\d+)(?!\S)")
_DESTINATION = re.compile(r"(?:-d|daddr) ([0-9a-f.:]+)")


def owner(rule: Rule, topology: Topology) -> str | None:
    """"Docker, network web", "Docker, port 8080 of c2", "ufw", "a person"; None where nothing tells."""
    text = rule.rule or ""
    jump = _JUMP.match(rule.verdict)
    target = _named(CHAINS, jump[1]) if jump else None
    found = _named(TABLES, rule.table) or _named(CHAINS, rule.chain)
    if found in (DOCKER, PODMAN):
        about = _port(text, topology) or _network(rule, topology)
        return f"{found}, {about}" if about else found
    if found == PERSON:  # a tool may write there, too; and Docker itself ends the chain with a RETURN
        return DOCKER if text == f"-A {rule.chain} -j RETURN" else target or PERSON
    if found:
        return found
    own = _of_docker(rule, topology)
    if own:
        return f"{DOCKER}, {own}"
    said = next((tool for pattern, tool in TEXTS if re.search(pattern, text)), None)
    if target == PERSON:  # the chain's maker leads there from FORWARD; from elsewhere, whoever wants the chain there, too
        return said or (DOCKER if text == "-A FORWARD -j DOCKER-USER" else None)
    return said or target


def owned(journey: Journey, topology: Topology) -> Journey:
    """The journey, with the owners of the rules that its packet met."""
    if not _ruled(journey.hops) and not journey.end.rule:
        return journey

    def told(rule: Rule) -> Rule:
        return replace(rule, owner=owner(rule, topology))

    hops = tuple(hop._replace(rules=tuple(map(told, hop.rules))) if hop.rules else hop for hop in journey.hops)
    end = journey.end._replace(rule=told(journey.end.rule)) if journey.end.rule else journey.end
    return replace(journey, hops=hops, end=end)


@of_way
def _ruled(hops: Sequence[Hop]) -> bool:
    return any(hop.rules for hop in hops)


def _named(patterns: tuple[tuple[str, str], ...], name: str) -> str | None:
    return next((tool for pattern, tool in patterns if re.fullmatch(pattern, name)), None)


def _network(rule: Rule, topology: Topology) -> str | None:
    """The network whose device or subnet the rule or its chain names."""
    words = {*re.findall(r'[^\s",{}]+', rule.rule or ""), rule.chain.partition("__")[2]}
    for network in topology.networks:
        names = {network.device, *map(str, network.subnets)}
        if words & names or rule.chain.startswith(f"nv_{network.id[:8]}_"):  # of netavark
            return f"network {network.name}"
    return None


def _port(text: str, topology: Topology) -> str | None:
    """The published port that the rule leads to, or lets through: it names the container's address and a port."""
    asked, to = _DPORT.search(text), _DNAT.search(text)
    goal = to or _DESTINATION.search(text)
    if not asked or not goal:
        return None
    for container in topology.containers:
        if any(goal[1] == str(address) for end in container.attachments for address in end.addresses):
            inner = int(to[2] if to else asked[2])
            ports = sorted({port.host_port for port in container.ports
                            if (port.protocol, port.container_port) == (asked[1], inner)
                            and (not to or port.host_port == int(asked[2]))})
            if ports:
                return f"port{'s' if len(ports) > 1 else ''} {', '.join(map(str, ports))} of {container.name}"
    return None


def _of_docker(rule: Rule, topology: Topology) -> str | None:
    """What a rule in a built-in chain is about, if it reads as Docker writes it for a network or port that it has."""
    text, place = rule.rule or "", (rule.table, rule.chain)
    for network in topology.networks:
        if network.driver == "bridge" and text in _written(place, network, topology):
            return f"network {network.name}"
    # a container that calls itself by its published port
    call = re.fullmatch(r"-A POSTROUTING -s (\S+) -d (\S+) -p \S+ -m \S+ --dport \d+ -j MASQUERADE", text)
    if call and call[1] == call[2] and rule.table == "nat":
        return _port(text, topology)
    if place == ("raw", "PREROUTING"):  # Docker 28: what is published at a loopback address is for the host alone
        for container in topology.containers:
            for port in container.ports:
                if text == (f"-A PREROUTING -d {port.host_ip}/32 ! -i lo -p {port.protocol} -m {port.protocol} "
                            f"--dport {port.host_port} -j DROP"):
                    return f"port {port.host_port} of {container.name}"
    return None


def _written(place: tuple[str, str], network: EngineNetwork, topology: Topology) -> Iterator[str]:
    """All that Docker puts into this (table, built-in chain) for a network, as iptables-save prints it."""
    device = network.device
    if place == ("filter", "FORWARD"):
        yield f"-A FORWARD -o {device} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        yield f"-A FORWARD -o {device} -j DOCKER"
        yield f"-A FORWARD -i {device} ! -o {device} -j ACCEPT"
        yield f"-A FORWARD -i {device} -o {device} -j {'ACCEPT' if network.icc else 'DROP'}"
    elif place == ("nat", "POSTROUTING"):
        yield from (f"-A POSTROUTING -s {subnet} ! -o {device} -j MASQUERADE" for subnet in network.subnets)
        yield f"-A POSTROUTING -o {device} -m addrtype --src-type LOCAL -j MASQUERADE"  # without the userland proxy
    elif place == ("raw", "PREROUTING"):  # Docker 28: to a container by its own bridge only
        for container in topology.containers:
            for end in container.attachments:
                yield from (f"-A PREROUTING -d {address}/{address.max_prefixlen} ! -i {device} -j DROP"
                            for address in end.addresses if end.network == network.name)
