"""Whose rules they are: those of real Docker engines, whole; the other tools' as their sources and manuals write them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from tracer.journey.owners import owned, owner
from tracer.model.journey import End, Hop, Journey, Packet, Result, Rule, Stage
from tracer.model.topology import Attachment, Container, Published, Topology
from tracer.topology.engine import _listed, _network, _of_podman

HERE = Path(__file__).parent
NETWORKS = tuple(_network(row, podman=False) for row in
                 json.loads((HERE / "topology" / "docker_20_10.json").read_text(encoding="utf-8"))["networks"])
ANY = ip_address("0.0.0.0")
C2 = Container("c2" * 32, "c2", 7, "running", "default", (Attachment("bridge", (ip_address("172.17.0.3"),), None),),
               (Published("tcp", 80, ANY, 8080), Published("tcp", 80, ip_address("::"), 8080)))
C3 = Container("c3" * 32, "c3", 8, "running", "web", (Attachment("web", (ip_address("172.30.0.1"),), None),),
               (Published("udp", 53, ip_address("127.0.0.1"), 53), Published("tcp", 81, ANY, 8081),
                Published("tcp", 82, ANY, 8082)))
DOCKER = Topology(1, {}, containers=(C2, C3), networks=NETWORKS)
NOBODY = Topology(1, {})


def rule(text: str, table: str = "filter", chain: str = "", family: str = "ip") -> Rule:
    """From a line of iptables-save, or from a rule as nft writes it."""
    if text.startswith("-A "):
        chain, target = text.split()[1], re.search(r"-[jg] (\S+)", text)
        builtin = target is None or target[1] in ("ACCEPT", "DROP", "REJECT", "RETURN", "MASQUERADE", "DNAT", "MARK")
        return Rule(family, table, chain, text, "continue" if builtin or not target else f"jump {target[1]}")
    jump = re.search(r"(jump|goto) \S+", text)
    return Rule(family, table, chain, text, jump[0] if jump else "continue")


def saved(lines: list[str] | None = None, family: str = "ip") -> Iterator[Rule]:
    table = ""
    for line in lines or (HERE / "rules" / "docker_20_10.iptables-save").read_text(encoding="utf-8").splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif "-A " in line:
            yield rule(line[line.index("-A "):], table, family=family)


def test_every_rule_of_a_docker_engine_is_dockers() -> None:
    owners = {r.rule: owner(r, DOCKER) for r in saved()}
    assert len(owners) > 30
    assert all(who and who.startswith("Docker") for who in owners.values()), owners
    web = next(n for n in NETWORKS if n.name == "web").device
    assert owners["-A FORWARD -j DOCKER-USER"] == owners["-A DOCKER-USER -j RETURN"] == "Docker"
    assert owners[f"-A DOCKER-ISOLATION-STAGE-2 -o {web} -j DROP"] == "Docker, network web"
    assert owners[f"-A FORWARD -i {web} -o {web} -j DROP"] == "Docker, network web"
    assert owners["-A DOCKER-ISOLATION-STAGE-1 ! -s 172.18.0.0/16 -o inside0 -j DROP"] == "Docker, network inside"
    assert owners["-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"] == "Docker, network bridge"
    assert owners["-A POSTROUTING -s 172.17.0.3/32 -d 172.17.0.3/32 -p tcp -m tcp --dport 80 -j MASQUERADE"] \
        == "Docker, port 8080 of c2"
    assert owners["-A DOCKER -d 172.17.0.3/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT"] \
        == "Docker, port 8080 of c2"
    assert owners[f"-A DOCKER ! -i {web} -p tcp -m tcp --dport 8082 -j DNAT --to-destination 172.30.0.1:82"] \
        == "Docker, port 8082 of c3"
    assert owners[f"-A DOCKER -d 127.0.0.1/32 ! -i {web} -p udp -m udp --dport 53 -j DNAT --to-destination 172.30.0.1:53"] \
        == "Docker, port 53 of c3"


@pytest.mark.parametrize("version", ["26_1", "28_5"])
def test_every_rule_of_a_later_docker_engine_is_dockers(version: str) -> None:
    recorded = json.loads((HERE / "rules" / f"docker_{version}.json").read_text(encoding="utf-8"))
    engine = Topology(1, {}, networks=tuple(_network(row, podman=False) for row in recorded["networks"]),
                      containers=tuple(filter(None, map(_listed, recorded["list"]))))
    owners = {r.rule or "": owner(r, engine) for family in ("ip", "ip6") for r in saved(recorded[family], family)}
    assert len(owners) > 40
    assert all(who and who.startswith("Docker") for who in owners.values()), owners
    web = next(n.device for n in engine.networks if n.name == "web")
    about = {
        f"-A DOCKER-FORWARD -i {web} -o {web} -j DROP": "Docker, network web",
        f"-A FORWARD -i {web} -o {web} -j DROP": "Docker, network web",
        f"-A DOCKER ! -i {web} -o {web} -j DROP": "Docker, network web",
        f"-A DOCKER-CT -o {web} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT": "Docker, network web",
        f"-A DOCKER-BRIDGE -o {web} -j DOCKER": "Docker, network web",
        f"-A PREROUTING -d 172.30.0.2/32 ! -i {web} -j DROP": "Docker, network web",
        "-A PREROUTING -d 127.0.0.1/32 ! -i lo -p udp -m udp --dport 53 -j DROP": "Docker, port 53 of c3",
        "-A DOCKER-ISOLATION-STAGE-1 ! -s 172.18.0.0/16 -o inside0 -j DROP": "Docker, network inside",
        "-A FORWARD -j DOCKER-FORWARD": "Docker",
        "-A DOCKER-FORWARD -j DOCKER-CT": "Docker"}
    found = {text: owners[text] for text in about if text in owners}
    assert len(found) == {"26_1": 2, "28_5": len(about) - 1}[version]
    assert found == {text: about[text] for text in found}


def test_in_a_journey() -> None:
    stage2 = rule("-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP")
    hop = Hop(0, 1, "host", "br0", 2, Stage.FORWARD, rules=(rule("-A FORWARD -j DOCKER-USER"), stage2))
    journey = Journey(1, Packet(4, "icmp", "172.30.0.1", "172.17.0.3", 84), (hop, hop._replace(rules=())),
                      End(Result.DROPPED, rule=stage2), "request")
    found = owned(journey, DOCKER)
    assert [r.owner for r in found.hops[0].rules] == ["Docker", "Docker, network bridge"]
    assert found.end.rule == found.hops[0].rules[1]
    assert found.hops[1] is journey.hops[1]


@pytest.mark.parametrize(("text", "table", "who"), [
    ("-A FORWARD -i docker0 -o docker0 -j DROP", "filter", None),  # of a network that has not forbidden it
    ("-A FORWARD -o eth1 -j ACCEPT", "filter", None),
    ("-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT", "filter", None),
    ("-A INPUT -j DOCKER-USER", "filter", None),
    ("-A DOCKER-USER -s 192.0.2.7/32 -j DROP", "filter", "a person"),
    ("-A DOCKER-USER -p tcp -m multiport --dports 22 -j f2b-sshd", "filter", "fail2ban"),
    ("-A DOCKER-MINE -j DROP", "filter", None),
    ("-A PREROUTING -d 172.17.0.3/32 ! -i docker0 -j DROP", "raw", "Docker, network bridge"),  # Docker 28
    ("-A PREROUTING -d 172.17.0.99/32 ! -i docker0 -j DROP", "raw", None),
    ("-A PREROUTING -d 127.0.0.1/32 ! -i lo -p udp -m udp --dport 53 -j DROP", "raw", "Docker, port 53 of c3"),
    ("-A DOCKER ! -i docker0 -o docker0 -j DROP", "filter", "Docker, network bridge"),
    ("-A DOCKER-FORWARD -i docker0 -j ACCEPT", "filter", "Docker, network bridge"),
    ("-A FORWARD -j DOCKER-FORWARD", "filter", "Docker"),
    ("-A FORWARD -m set --match-set docker-ext-bridges-v4 dst -j DOCKER", "filter", "Docker"),
    ("-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT", "nat", "Docker, its name server"),
])
def test_with_a_docker_engine(text: str, table: str, who: str | None) -> None:
    assert owner(rule(text, table), DOCKER) == who


def test_without_the_engines_word_a_rule_in_a_built_in_chain_is_nobodys() -> None:
    owners = {r.rule: owner(r, NOBODY) for r in saved()}
    assert owners["-A FORWARD -i docker0 ! -o docker0 -j ACCEPT"] is None
    assert owners["-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP"] == "Docker"


def test_policies() -> None:
    policy = Rule("ip", "filter", "FORWARD", None, "drop", policy=True)
    assert owner(policy, DOCKER) is None
    assert owner(replace(policy, family="inet", table="firewalld", chain="filter_FORWARD"), DOCKER) == "firewalld"


@pytest.mark.parametrize(("chain", "text", "who"), [  # as moby's nftablesdoc has them
    ("filter-forward-in__docker0", 'counter drop comment "UNPUBLISHED PORT DROP"', "Docker, network bridge"),
    ("filter-forward-in__docker0", "ip daddr 172.17.0.3 tcp dport 80 counter accept", "Docker, port 8080 of c2"),
    ("nat-prerouting-and-output", 'iifname != "docker0" tcp dport 8080 counter dnat to 172.17.0.3:80 comment "DNAT"',
     "Docker, port 8080 of c2"),
    ("raw-PREROUTING", 'ip daddr 172.17.0.3 iifname != "docker0" counter drop comment "DROP DIRECT ACCESS"',
     "Docker, network bridge"),
    ("nat-PREROUTING", "fib daddr type local counter jump nat-prerouting-and-output", "Docker"),
])
def test_dockers_nftables_backend(chain: str, text: str, who: str) -> None:
    assert owner(rule(text, "docker-bridges", chain), DOCKER) == who


def test_podman() -> None:
    network = _of_podman({"name": "podman", "id": "2f259bab93aa" + "0" * 52, "driver": "bridge",
                          "network_interface": "podman0", "subnets": [{"subnet": "10.88.0.0/16"}]})
    web = Container("ae" * 32, "web", 9, "running", "bridge", (Attachment("podman", (ip_address("10.88.0.4"),), None),),
                    (Published("tcp", 8080, None, 3001),))
    podman = Topology(1, {}, containers=(web,), networks=(network,))

    def said(chain: str, text: str) -> str | None:
        return owner(rule(text, "netavark", chain, "inet"), podman)

    assert said("NETAVARK-ISOLATION-3", 'oifname "podman0" drop') == "podman, network podman"
    assert said("FORWARD", "ip saddr 10.88.0.0/16 accept") == "podman, network podman"
    assert said("nv_2f259bab_10_88_0_0_nm16_dnat", "tcp dport 3001 dnat ip to 10.88.0.4:8080") == "podman, port 3001 of web"
    assert said("nv_2f259bab_10_88_0_0_nm16", "ip daddr != 224.0.0.0/4 masquerade") == "podman, network podman"
    assert said("FORWARD", "ct state invalid drop") == "podman"
    assert owner(rule("-A FORWARD -m comment --comment \"netavark firewall rules\" -j NETAVARK_FORWARD"), podman) == "podman"


@pytest.mark.parametrize(("text", "who"), [
    ("-A FORWARD -j ufw-before-forward", "ufw"),
    ("-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT", "ufw"),
    ("-A ufw6-user-input -p tcp -m tcp --dport 22 -j ACCEPT", "ufw"),
    ("-A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable", "ufw"),
    ("-A FORWARD -j FORWARD_direct", "firewalld, a direct rule"),
    ("-A FORWARD -j FORWARD_IN_ZONES_SOURCE", "firewalld"),
    ("-A IN_public_allow -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW,UNTRACKED -j ACCEPT", "firewalld"),
    ('-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD', "kube-proxy"),
    ("-A KUBE-SEP-ETI7FUQQE3BS2IXE -p tcp -m tcp -j DNAT --to-destination 192.168.10.100:6443", "kube-proxy"),
    ("-A OUTPUT -j KUBE-FIREWALL", "kubelet"),
    ("-A KUBE-POD-FW-ABCDEFGH -j REJECT --reject-with icmp-port-unreachable", "kube-router"),
    ("-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd", "fail2ban"),
    ("-A f2b-sshd -s 192.0.2.7/32 -j REJECT --reject-with icmp-port-unreachable", "fail2ban"),
    ('-A FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m mark --mark 0x10000/0x10000 -j ACCEPT', "Calico"),
    ('-A cali-FORWARD -i cali+ -m comment --comment "cali:8ZoYfO5HKXWbB3pk" -j cali-from-wl-dispatch', "Calico"),
    ('-A INPUT -m comment --comment "cilium-feeder: CILIUM_INPUT" -j CILIUM_INPUT', "Cilium"),
    ('-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT', "Flannel"),
    ("-A WEAVE-NPC -m state --state NEW -j WEAVE-NPC-DEFAULT", "Weave Net"),
    ("-A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable", "libvirt"),
    ('-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD', "CNI plugins"),
    ('-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN', "CNI plugins"),
    ("-A CNI-ADMIN -s 192.0.2.7/32 -j DROP", "a person"),
    ('-A FORWARD -o lxdbr0 -m comment --comment "generated for LXD network lxdbr0" -j ACCEPT', "LXD"),
    ("-A FORWARD -j ts-forward", "Tailscale"),
    ('-A INPUT -m comment --comment "of mine" -j DROP', None),
])
def test_other_tools(text: str, who: str | None) -> None:
    assert owner(rule(text), NOBODY) == who


@pytest.mark.parametrize(("family", "table", "chain", "text", "who"), [
    ("inet", "firewalld", "filter_FORWARD", "reject with icmpx admin-prohibited", "firewalld"),
    ("ip", "kube-proxy", "services", "ip daddr . meta l4proto . th dport vmap @service-ips", "kube-proxy"),
    ("inet", "f2b-table", "f2b-chain", "tcp dport 22 ip saddr @addr-set-sshd reject with icmp port-unreachable", "fail2ban"),
    ("ip", "libvirt_network", "guest_input", 'oifname "virbr0" reject', "libvirt"),
    ("ip", "flannel-ipv4", "postrtg", "meta mark & 0x00004000 == 0x00004000 return", "Flannel"),
    ("inet", "mine", "forward", "drop", None),
])
def test_tables_of_their_own(family: str, table: str, chain: str, text: str, who: str | None) -> None:
    assert owner(rule(text, table, chain, family), NOBODY) == who
