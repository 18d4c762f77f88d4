"""Faults of the host's settings and rules."""

from __future__ import annotations

from collections.abc import Iterator

from tracer.journey import sentences
from tracer.journey.engines import engine_words
from tracer.map.scene import Scene, first_upper, has_version
from tracer.model.journey import Cause

# the host's settings ----------------------------------------------------------------------------------------------------


def forwarding_off(scene: Scene) -> Iterator[Cause]:
    host = scene.host
    if host is None:
        return
    for version, setting in ((4, "net.ipv4.ip_forward"), (6, "net.ipv6.conf.all.forwarding")):
        routed = [bridge for space, bridge in scene.bridges if space is host and has_version(bridge, version)
                  and not getattr(scene.network(space, bridge), "internal", False)]
        if routed and host.sysctls.get(setting) == "0":
            yield Cause("forwarding_off", first_upper(sentences.no_forwarding("the host", setting)),
                        (f"{setting} = 0", f"bridges with an IPv{version} address and containers: "
                         + ", ".join(link.name for link in routed)), f"sysctl -w {setting}=1")


def bridge_filter_off(scene: Scene) -> Iterator[Cause]:
    """Rules between ports of one bridge: without br_netfilter only those of nftables' bridge family see such frames."""
    host = scene.host
    setting = "net.bridge.bridge-nf-call-iptables"
    if host is None or host.sysctls.get(setting) == "1":
        return
    read = host.sysctls.get(setting)
    for space, bridge in scene.bridges:
        network = scene.network(space, bridge)
        if space is not host or (network and network.internal):
            continue
        rules = [r.rule for r in (scene.ruleset.rules if scene.ruleset else ()) if r.rule and r.family == "ip"
                 and f"-i {bridge.name} -o {bridge.name} -j DROP" in r.rule]
        if rules or (network and not network.icc):
            whose = f"network {network.name}" if network else bridge.name
            yield Cause("bridge_filter_off", f"Containers on {whose} are not to talk to each other, but br_netfilter is off"
                        f": what {bridge.name} only switches never meets iptables, and they do.",
                        (f"{setting} = {read}" if read else f"{setting} is not there: br_netfilter is not loaded",
                         *(f"filter/FORWARD: {rule}" for rule in rules),
                         *([f"network {network.name} has enable_icc=false"] if network and not network.icc else [])),
                        f"modprobe br_netfilter && sysctl -w {setting}=1")


# rules ------------------------------------------------------------------------------------------------------------------


def docker_chains_missing(scene: Scene) -> Iterator[Cause]:
    rules, host = scene.ruleset, scene.host
    networks = [n for n in scene.topology.networks if n.driver == "bridge" and n.device and host and host.by_name(n.device)]
    if rules is None or not networks or any(rule.table == "docker-bridges" for rule in rules.rules):
        return  # Docker's nftables backend has a table of its own
    engine = engine_words(scene.topology)
    for base in scene.chains("forward", "ip"):
        texts = [rule.rule or "" for rule in rules.of(base)]
        own = (*engine.chains, *(n.device for n in networks if n.device))
        if base.table != "filter" or rules.policy(base) != "DROP" or any(mark in text for text in texts for mark in own):
            continue
        chain = f"{base.table}/{base.name}{' (legacy)' if base.legacy else ''}"
        yield Cause("docker_chains_missing", sentences.chains_gone(chain, networks[0], engine.name),
                    (f"{chain} sends nothing to a chain of {engine.name}'s", f"the policy of {chain} is DROP"),
                    engine.restore)
        return


def two_backends(scene: Scene) -> Iterator[Cause]:
    """Where the rules were read, a backend with chains and without a rule is not in use: listing it makes its tables."""
    chains = (scene.host.chains if scene.host else None) or ()
    used = {}
    for legacy in (True, False):
        ours = [c for c in chains if c.legacy is legacy and c.family in ("ip", "ip6") and c.name == c.hook.upper()]
        if scene.ruleset and not scene.ruleset.unknown:
            ours = [c for c in ours if any(r.rule for r in scene.ruleset.of(c)) or scene.ruleset.policy(c) == "DROP"]
        used[legacy] = sorted({f"{'ip6' if c.family == 'ip6' else 'ip'} {c.table}" for c in ours})
    if used[True] and used[False]:
        yield Cause("two_backends", "Both backends of iptables have rules, and each packet meets both: what one accepts, "
                    "the other may drop, and each tool shows its own half.",
                    (f"iptables-legacy: {', '.join(used[True])}", f"iptables-nft: {', '.join(used[False])}"),
                    "keep the one that `iptables -V` names, and empty the other: `iptables-legacy-save` and "
                    "`iptables-nft-save` show them")
