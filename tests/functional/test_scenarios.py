"""What people meet on a Docker bridge, built for real on an engine: who stopped a probe, by which rule, why, and the mend.

The rows S12, S14, S18, S20, S25, S29, S30, S31, S33, S41 of the list are in test_causes.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.functional.conftest import Dnettrace
from tests.functional.engine import PATIENCE, Engine, find_busybox
from tests.functional.pinging import answers
from tests.functional.way import Output, Row, arriving, from_host, isolated, leaving, read, switched, to_host

Ping = Callable[..., Output]
WORDS: dict[int, dict[str, str]] = {
    4: {"ipt": "iptables", "family": "ip", "icmp": "icmp", "echo": "-m icmp --icmp-type 8", "out": "203.0.113.1", "six": "",
        "port": "icmp-port-unreachable", "prohibited": "icmp-admin-prohibited", "gate": "172.17.0.1", "bits": "32",
        "host": "198.51.100.2", "nf": "ip", "nfaddr": "ipv4_addr", "type": "icmp"},
    6: {"ipt": "ip6tables", "family": "ip6", "icmp": "ipv6-icmp", "echo": "-m icmp6 --icmpv6-type 128",
        "out": "2001:db8:1::1", "six": "-6", "port": "icmp6-port-unreachable", "prohibited": "icmp6-adm-prohibited",
        "gate": "fd00:17::1", "bits": "128", "host": "2001:db8::2", "nf": "ip6", "nfaddr": "ipv6_addr",
        "type": "icmpv6"}}


class World:
    """The engine, with what stands for the braces in commands, rules and mends, by IP version."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.words = {version: dict(words) for version, words in WORDS.items()}
        for words in self.words.values():
            words.update(wan=f"nsenter --net={engine.wan_netns}", WAN=f"netns:{engine.name}-wan",
                         unguard=f"{words['ipt']} -t raw -F PREROUTING" if engine.guards else "true")
        for number in (1, 2):
            self.add(f"c{number}")
            for words in self.words.values():
                words[f"p{number}"] = self.port(words[f"in_c{number}"])

    def port(self, enter: str) -> str:
        """The host's end of a container's eth0."""
        inner = self.engine.on_host(*enter.split(), "ip", "-o", "link", "show", "eth0").stdout
        index = inner.partition("@if")[2].partition(":")[0]
        found = re.search(rf"^{index}: ([^@:]+)", self.engine.on_host("ip", "-o", "link").stdout, re.M)
        assert found, inner
        return found[1]

    def add(self, name: str, network: str = "bridge") -> None:
        """A container's addresses as {c1}, and {in_c1} to enter it."""
        networks = f'(index .NetworkSettings.Networks "{network}")'
        words = " ".join(f"{{{{{networks}.{word}}}}}" for word in ("IPAddress", "GlobalIPv6Address", "MacAddress"))
        four, six, mac = self.engine.docker("inspect", "-f", words, name).split(" ")
        for version, address in ((4, four), (6, six)):
            self.words[version][name] = address
            self.words[version][f"mac_{name}"] = mac
            self.words[version][f"in_{name}"] = f"nsenter --net=/proc/{self.engine.pid(name)}/ns/net"

    def say(self, text: str, version: int) -> str:
        return text.format_map(self.words[version])

    def run(self, commands: str, version: int = 4) -> None:
        """One command a line, at the host."""
        for line in filter(None, map(str.strip, commands.splitlines())):
            done = self.engine.on_host(*shlex.split(self.say(line, version)))
            assert done.returncode == 0, f"{line}: {done.stderr}"

    def load(self, ruleset: str) -> None:
        done = self.engine.on_host("nft", "-f", "-", input=ruleset, stdin=None)
        assert done.returncode == 0, done.stderr

    def saved(self, tool: str = "iptables") -> str:
        return str(self.engine.on_host(f"{tool}-save").stdout)


@pytest.fixture(scope="module")
def routed(engine: Engine) -> Iterator[World]:
    """The world outside knows the way to the containers' own addresses."""
    world = World(engine)
    ways = {4: "172.17.0.0/16 via 198.51.100.2", 6: "fd00:17::/64 via 2001:db8::2"}
    for version, way in ways.items():
        world.run(f"{{wan}} ip route add {way}", version)
    yield world
    for version, way in ways.items():
        world.run(f"{{wan}} ip route del {way}", version)


@pytest.fixture
def world(routed: World) -> Iterator[World]:
    """With the rules, and the containers', put back afterwards."""
    world = routed
    c1 = f"/proc/{world.engine.pid('c1')}/ns/net"
    for words in world.words.values():  # so that c1 knows their MACs, and no rule stops the question instead of the probe
        for name in ("gate", "c2"):
            assert any(answers(c1, words[name]) for _turn in range(3)), f"{words[name]} does not answer"
    before = {tool: world.saved(tool) for tool in ("iptables", "ip6tables")}
    tables = set(world.engine.on_host("nft", "list", "tables").stdout.splitlines())
    yield world
    for tool, rules in before.items():
        done = world.engine.on_host(f"{tool}-restore", input=rules, stdin=None)
        assert done.returncode == 0, done.stderr
    for line in set(world.engine.on_host("nft", "list", "tables").stdout.splitlines()) - tables:
        world.engine.on_host("nft", "delete", *line.split())
    for name in ("c1", "c2"):
        world.run(f"{{in_{name}}} nft flush ruleset")
    world.run("sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1")


@pytest.fixture
def ping(dnettrace: Dnettrace, world: World) -> Ping:
    def call(words: str, version: int = 4, status: int | None = None) -> Output:
        patience = (2 if status == 0 else 0.6) * PATIENCE  # what is stopped was stopped long before
        return read(dnettrace("ping", "-W", str(patience), *world.say(words, version).split(), "-c", "1", "--json",
                              netns=world.engine.host_netns, env=world.engine.env()), status)

    return call


def both(work: Callable[[int], Any], versions: tuple[int, ...] = (4, 6)) -> None:
    """At the same time: one run mostly waits for its answer."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(work, versions))


def arrives(world: World, ping: Ping, words: str, version: int) -> None:
    """With an answer: by the tracer's probe, and, as that takes its time, by an ordinary one of IPv6."""
    if version == 6 and "--" not in words:
        enter, target = (world.say(re.sub(r"\b(c1|c2)\b(?!})", form, word), 6) for form, word in zip(
            (r"{in_\1}", r"{\1}"), words.replace("host", "{gate}").split(), strict=True))
        enter = "" if enter == world.words[6]["gate"] else enter
        busybox = str(find_busybox(world.engine.unpacked))
        done = world.engine.on_host(*enter.split(), busybox, "ping", "-6", "-c", "1", "-W", "2", target)
        assert done.returncode == 0, done.stdout
        return
    end = ping(f"{words} {{six}}", version, 0).only("request")["end"]
    assert end["result"] in ("delivered", "relayed")
    assert all(found["remark"] for found in end["causes"])


PUBLISHED = ["{wan} eth0 route", "{wan} eth0 output", "{wan} eth0 postrouting", "{wan} eth0 egress", "host eth0 ingress",
             "host eth0 prerouting", "host docker0 route", "host eth0 forward", "host eth0 postrouting",
             "host docker0 egress nic", "host docker0 l2_forward switch", "host veth>c2 egress", *arriving("c2")]
TO_HOST = [*leaving("{wan}")[:4], "host eth0 ingress", "host eth0 prerouting", "host - route", "host eth0 input"]
OUT = [*to_host("c1")[:7], "host eth0 route", "host docker0 forward", "host docker0 postrouting", "host eth0 egress"]
WAYS = {"c1 c2": switched("c1", "c2"), "c1 out": OUT, "c1 host": to_host("c1"), "host c2": from_host("c2"),
        "wan c2": PUBLISHED, "wan host": TO_HOST}


def path(output: Output, world: World, way: str, kind: str = "request") -> None:
    """All hops are shown up to the one at which it ended."""
    found = output.way(output.only(kind))
    whole = [hop.format(wan=world.words[4]["WAN"][6:]) for hop in WAYS[way]]
    assert found == whole[:len(found)]


@dataclass(frozen=True)
class Fault:
    """A rule that somebody has added, or a policy."""

    build: str
    ping: str
    way: str
    at: tuple[str, str]  # node, stage
    cause: str  # the likeliest, and those behind it
    mend: str | None = "{delete}"  # None: the owner's affair, or words
    then: bool = True  # running the mend mends it
    table: str = ""
    owner: str | None = None
    versions: tuple[int, ...] = (4, 6)

    def rule(self, world: World, version: int) -> tuple[str, str, str, str | None, str, bool]:
        """(family, table, chain, text, verdict, by the policy), of the last command."""
        words = shlex.split(world.say(self.build.strip().splitlines()[-1], version))
        words = words[words.index(world.words[version]["ipt"]):]
        table = words[words.index("-t") + 1] if "-t" in words else "filter"
        at = next(at for at, word in enumerate(words) if word in ("-P", "-I", "-A"))
        if words[at] == "-P":
            return world.words[version]["family"], table, words[at + 1], None, "drop", True
        text = shlex.join(["-A", *words[at + 1:]]).replace("'!'", "!").replace("'", '"')
        verdict = "reject" if "REJECT" in words else "queue" if "NFQUEUE" in words else "drop"
        return world.words[version]["family"], table, words[at + 1], text, verdict, False


OPEN = "firewall_rule"
ROUTED = ("c1 {out}", "c1 out")
BRIDGED = ("c1 c2", "c1 c2")
UNBRIDGE = "sysctl -w net.bridge.bridge-nf-call-{ipt}=0"
FAULTS = {
    "S01 the policy of FORWARD": Fault(
        "{ipt} -F FORWARD\n{ipt} -A FORWARD -j DOCKER\n{ipt} -P FORWARD DROP", *ROUTED, ("host", "forward"), "chain_policy",
        "{ipt} -I FORWARD -i docker0 -o eth0 -j ACCEPT", then=False),
    "S01 the policy of FORWARD, bridged": Fault(
        "{in_c1} ip neigh replace {c2} lladdr {mac_c2} dev eth0 nud stale\n"
        "{ipt} -F FORWARD\n{ipt} -A FORWARD -j DOCKER\n{ipt} -P FORWARD DROP", *BRIDGED, ("host", "forward"),
        "bridged_traffic_filtered chain_policy", UNBRIDGE, then=False),
    "S27 nothing of Docker's in FORWARD": Fault(
        "{ipt} -F FORWARD\n{ipt} -P FORWARD DROP", *ROUTED, ("host", "forward"), "docker_chains_missing chain_policy",
        "systemctl restart docker", then=False, versions=(4,)),
    "S36 the policy of FORWARD, and nothing else": Fault(
        "{ipt} -F FORWARD\n{ipt} -P FORWARD DROP", *ROUTED, ("host", "forward"), "chain_policy",
        "{ipt} -I FORWARD -i docker0 -o eth0 -j ACCEPT", then=False, versions=(6,)),
    "S01 the policy of INPUT": Fault(
        "{ipt} -P INPUT DROP", "c1 host", "c1 host", ("host", "input"), "chain_policy",
        "{ipt} -I INPUT -i docker0 -j ACCEPT"),
    "S01 the policy of OUTPUT": Fault(
        "{ipt} -P OUTPUT DROP", "host c2", "host c2", ("host", "output"), "chain_policy",
        "{ipt} -I OUTPUT -o docker0 -j ACCEPT"),
    "S06 a rule of the host's for what docker0 switches": Fault(
        "{ipt} -I FORWARD -p {icmp} {echo} -j DROP", *BRIDGED, ("host", "forward"), "bridged_traffic_filtered firewall_rule",
        UNBRIDGE),
    "S07 what --icc=false does": Fault(
        "{in_c1} ip neigh replace {c2} lladdr {mac_c2} dev eth0 nud stale\n{ipt} -I FORWARD -i docker0 -o docker0 -j DROP",
        *BRIDGED, ("host", "forward"), "icc_off"),
    "S21 INPUT refuses containers": Fault(
        "{ipt} -I INPUT -i docker0 -p tcp -m tcp --dport 8080 -j DROP", "c1 host --tcp 8080", "c1 host", ("host", "input"),
        "host_input_blocked", "{ipt} -I INPUT -i docker0 -p tcp --dport 8080 -j ACCEPT"),
    "S03 an unpublished port": Fault(
        "{unguard}\n{ipt} -A DOCKER ! -i docker0 -o docker0 -j DROP", "{WAN} {c2} --tcp 81", "wan c2", ("host", "forward"),
        "port_not_published", "create c2 anew with `-p HOSTPORT:81`", then=False,
        owner="Docker, network bridge"),
    "S02 direct access": Fault(
        "{ipt} -t raw -A PREROUTING -d {c2}/{bits} ! -i docker0 -j DROP", "{WAN} {c2} --tcp 80", "wan c2",
        ("host", "prerouting"), "direct_access_blocked", "publish the port: `docker run -p HOSTPORT:80`", then=False,
        owner="Docker, network bridge"),
    "raw PREROUTING": Fault(
        "{ipt} -t raw -I PREROUTING -i docker0 -p {icmp} {echo} -j DROP", *ROUTED, ("host", "prerouting"), OPEN),
    "raw PREROUTING, bridged": Fault(
        "{ipt} -t raw -I PREROUTING -i docker0 -p {icmp} {echo} -j DROP", *BRIDGED, ("host", "prerouting"),
        "bridged_traffic_filtered firewall_rule", UNBRIDGE),
    "mangle PREROUTING": Fault(
        "{ipt} -t mangle -I PREROUTING -p {icmp} {echo} -j DROP", *ROUTED, ("host", "prerouting"), OPEN),
    "mangle FORWARD": Fault("{ipt} -t mangle -I FORWARD -p {icmp} {echo} -j DROP", *ROUTED, ("host", "forward"), OPEN),
    "mangle POSTROUTING": Fault(
        "{ipt} -t mangle -I POSTROUTING -p {icmp} {echo} -j DROP", *ROUTED, ("host", "postrouting"), OPEN),
    "mangle INPUT": Fault("{ipt} -t mangle -I INPUT -p {icmp} {echo} -j DROP", "c1 host", "c1 host", ("host", "input"),
                          "host_input_blocked", None),
    "security FORWARD": Fault("{ipt} -t security -I FORWARD -p {icmp} {echo} -j DROP", *ROUTED, ("host", "forward"),
                              "accepted_then_dropped"),
    "raw OUTPUT": Fault("{ipt} -t raw -I OUTPUT -p {icmp} {echo} -j DROP", "host c2", "host c2", ("host", "output"), OPEN),
    "OUTPUT rejects": Fault(
        "{ipt} -I OUTPUT -p {icmp} {echo} -j REJECT --reject-with {port}", "host c2", "host c2", ("host", "output"), OPEN),
    "FORWARD rejects as prohibited": Fault(
        "{ipt} -I FORWARD -i docker0 -p {icmp} -j REJECT --reject-with {prohibited}", *ROUTED, ("host", "forward"), OPEN),
    "DOCKER-USER drops": Fault(
        "{ipt} -I DOCKER-USER -i docker0 -p {icmp} -j DROP", *ROUTED, ("host", "forward"), "docker_user_rule",
        owner="a person", versions=(4,)),
    "DOCKER-USER resets": Fault(
        "{ipt} -I DOCKER-USER -p tcp -m tcp --dport 80 -j REJECT --reject-with tcp-reset", "{WAN} {host} --tcp 8080",
        "wan c2", ("host", "forward"), "docker_user_rule",
        owner="a person", versions=(4,)),
    "FORWARD resets": Fault(
        "{ipt} -I FORWARD -p tcp -m tcp --dport 80 -j REJECT --reject-with tcp-reset", "{WAN} {host} --tcp 8080",
        "wan c2", ("host", "forward"), OPEN),
    "INPUT rejects UDP": Fault(
        "{ipt} -I INPUT -p udp -j REJECT --reject-with {port}", "{WAN} {host} --udp 53", "wan host", ("host", "input"),
        OPEN, then=False),
    "a queue that no program reads": Fault(
        "{ipt} -I FORWARD -i docker0 -p {icmp} -j NFQUEUE --queue-num 77", *ROUTED, ("host", "forward"), "queue_unread",
        "start the program, or let the packet pass without it: --queue-bypass", then=False),
    "in a container, INPUT": Fault(
        "{in_c2} {ipt} -A INPUT -p {icmp} {echo} -j DROP", *BRIDGED, ("c2", "input"), OPEN, "{in_c2} {delete}"),
    "in a container, OUTPUT": Fault(
        "{in_c1} {ipt} -A OUTPUT -p {icmp} {echo} -j DROP", *BRIDGED, ("c1", "output"), OPEN, "{in_c1} {delete}"),
    "conntrack and a limit": Fault(
        "{ipt} -I FORWARD -m conntrack --ctstate NEW -m limit --limit 100/sec -j DROP", *ROUTED, ("host", "forward"), OPEN),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_rule_that_stops_it(what: str, world: World, ping: Ping) -> None:
    fault = FAULTS[what]
    for version in fault.versions:
        world.run(fault.build, version)

    def see(version: int) -> None:
        output = ping(f"{fault.ping} {{six}}", version)
        end = output.only("request")["end"]
        family, table, chain, text, verdict, policy = fault.rule(world, version)
        found = end["rule"]
        assert found, end
        assert (end["result"], end["node"], end["stage"]) == ("dropped", *fault.at)
        assert (found["family"], found["table"], found["chain"], found["rule"], found["verdict"], found["policy"],
                found["exact"], found["by"]) == (family, table, chain, text, verdict, policy, True, "trace")
        assert found["owner"] == fault.owner
        assert [c["name"] for c in end["causes"]] == fault.cause.split()
        path(output, world, fault.way)
        if verdict == "reject":  # and the sender is told
            answer = output.only("reply" if "tcp-reset" in (text or "") else "error")["end"]
            assert (answer["result"], answer["node"]) == ("delivered", output.way(output.only("request"))[0].split()[0])
        if fault.mend is None:
            return
        tool = world.words[version]["ipt"]
        mend = fault.mend.replace("{delete}", f"{tool} -t {table} -D {(text or '')[3:]}")
        assert end["mend"] == world.say(mend, version)
        if fault.then:
            world.run(end["mend"], version)
            arrives(world, ping, fault.ping, version)

    both(see, fault.versions)


@dataclass(frozen=True)
class Native:
    """A table in nft's own words: what is declared in it, its base chain, the last of whose rules stops the probe."""

    family: str
    hook: str
    rules: str  # one a line
    at: tuple[str, str]
    cause: str = OPEN
    more: str = ""
    chain: str = "base"  # that stops it
    ping: str = ROUTED[0]
    way: str = ROUTED[1]
    netns: str = ""

    def load(self, world: World, version: int) -> None:
        body = f"chain base {{{{ type filter hook {self.hook}; {'; '.join(self.rules.splitlines())}; }}}}"
        text = world.say(f"table {self.family} own{version} {{{{\n{self.more}\n{body}\n}}}}", version)
        done = world.engine.on_host(*world.say(self.netns, version).split(), "nft", "-f", "-", input=text, stdin=None)
        assert done.returncode == 0, f"{text}: {done.stderr}"


AHEAD = "forward priority -5"
NATIVE = {
    "a set": Native("{nf}", AHEAD, "{nf} saddr @who {type} type echo-request drop", ("host", "forward"),
                    more="set who {{ type {nfaddr}; elements = {{ {c1} }}; }}"),
    "a verdict map": Native("{nf}", AHEAD, "{type} type vmap {{ echo-request : drop }}", ("host", "forward")),
    "a jump by a map": Native(
        "inet", AHEAD, "iifname vmap @by", ("host", "forward"), chain="own",
        more='chain own {{ {type} type echo-request counter drop; }}\nmap by {{ type ifname : verdict; elements = '
             '{{ "docker0" : jump own }}; }}'),
    "goto": Native("inet", AHEAD, "oifname \"eth0\" goto own", ("host", "forward"), chain="own",
                   more="chain own {{ {type} type echo-request limit rate 100/second drop; }}"),
    "a policy": Native("{nf}", AHEAD + "; policy drop", "ct state established,related accept", ("host", "forward"),
                       "chain_policy"),
    "a policy in input": Native("{nf}", "input priority 5; policy drop", "{type} type != echo-request accept",
                                ("host", "input"), "chain_policy", ping="c1 host", way="c1 host"),
    "S10 accepted in one table, dropped in another": Native(
        "inet", "forward priority 5", "meta l4proto {icmp} ct state new drop", ("host", "forward"), "accepted_then_dropped"),
    "S09 rejected after Docker accepted it": Native(
        "inet", "forward priority 10", "meta l4proto {icmp} reject with icmpx admin-prohibited", ("host", "forward"),
        "accepted_then_dropped"),
    "prerouting of inet": Native("inet", "prerouting priority -310", "iifname \"docker0\" {type} type echo-request drop",
                                 ("host", "prerouting")),
    "postrouting": Native("{nf}", "postrouting priority 50", "oifname \"eth0\" {type} type echo-request drop",
                          ("host", "postrouting")),
    "the bridge family": Native("bridge", "forward priority -5", "{nf} daddr {c2} {type} type echo-request drop",
                                ("host", "l2_forward"), ping="c1 c2", way="c1 c2"),
    "the netdev family": Native("netdev", 'ingress device "{p1}" priority 0', "{type} type echo-request drop",
                                ("host", "ingress"), ping="c1 c2", way="c1 c2"),
    "ingress of inet": Native("inet", 'ingress device "{p1}" priority 0', "{type} type echo-request drop",
                              ("host", "ingress"), ping="c1 c2", way="c1 c2"),
    "egress of netdev": Native("netdev", 'egress device "{p2}" priority 0', "{type} type echo-request drop",
                               ("host", "postrouting"), ping="c1 c2", way="c1 c2"),
    "in a container": Native("inet", "input priority 0", "{type} type echo-request drop", ("c2", "input"), ping="c1 c2",
                             way="c1 c2", netns="{in_c2}"),
    "in a container, before it leaves": Native("inet", "output priority 0", "{type} type echo-request drop",
                                               ("c1", "output"), ping="c1 c2", way="c1 c2", netns="{in_c1}"),
}


@pytest.mark.parametrize("what", NATIVE)
def test_a_native_table_that_stops_it(what: str, world: World, ping: Ping) -> None:
    table = NATIVE[what]
    for version in (4, 6):
        table.load(world, version)

    def see(version: int) -> None:
        output = ping(f"{table.ping} {{six}}", version)
        end = output.only("request")["end"]
        text = (re.search(rf"chain {table.chain} {{{{ (.*); }}}}", table.more) or ["", table.rules.splitlines()[-1]])[1]
        found = end["rule"]
        assert found, end
        assert (end["result"], end["node"], end["stage"]) == ("dropped", *table.at)
        assert (found["family"], found["table"], found["chain"], found["exact"], found["owner"]) == (
            world.say(table.family, version), f"own{version}", table.chain, True, None)
        assert found["verdict"] == ("reject" if "reject" in text else "drop")
        if "policy drop" in table.hook:
            assert (found["rule"], found["policy"]) == (None, True)
        else:  # nft writes the kind of error in more ways than one
            assert found["rule"].split(" reject ")[0] == world.say(text, version).split(" reject ")[0]
        assert [c["name"] for c in end["causes"]] == table.cause.split()
        path(output, world, table.way)
        world.run(end["mend"].replace("{", "{{").replace("}", "}}"), version)
        arrives(world, ping, table.ping, version)

    both(see)


def test_a_chain_of_the_bridge_family_beside_br_netfilter(world: World, ping: Ping) -> None:
    """At its very priority: before br_netfilter had one function there (br_nf_forward), its packets passed such chains over,
    and their counters stayed 0. What is told is what the counter says."""
    world.load("table bridge own { chain base { type filter hook forward priority 0; ip protocol icmp counter drop; }; }")
    end = ping("c1 c2", 4, None).only("request")["end"]
    listed = world.engine.on_host("nft", "list", "table", "bridge", "own").stdout
    if "packets 0 " in listed and not re.search(r" br_nf_forward\b", Path("/proc/kallsyms").read_text()):
        assert (end["result"], end["node"], end["causes"]) == ("delivered", "c2", [])
    else:
        assert (end["result"], end["node"], end["stage"], names(end)) == ("dropped", "host", "l2_forward", [OPEN])
        assert end["rule"]["rule"] == "ip protocol icmp counter drop"


QUEUE = """
import socket, struct
def send(kind, *rows):  # to NFNL_SUBSYS_QUEUE
    rows = b"".join(struct.pack("=HH", 4 + len(data), number) + data for number, data in rows)
    body = struct.pack(">BBH", 0, 0, 77) + rows
    port.send(struct.pack("=IHHII", 16 + len(body), 3 << 8 | kind, 1, 0, 0) + body)
port = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
port.bind((0, 0))
send(2, (1, struct.pack(">BBH", 1, 0, 0)))  # NFQA_CFG_CMD: bind
send(2, (2, struct.pack(">IB", 0, 1) + bytes(3)))  # NFQA_CFG_PARAMS: no bytes of the packet
print("ready", flush=True)
while True:
    data = port.recv(65536)  # header, nfgenmsg, then NFQA_PACKET_HDR
    send(1, (2, struct.pack(">I", 0) + data[24:28]))  # NFQA_VERDICT_HDR: drop
"""


def test_a_program_that_drops_what_a_rule_hands_it(world: World, ping: Ping) -> None:
    world.run("{ipt} -I FORWARD -i docker0 -p icmp -j NFQUEUE --queue-num 77")
    command = ["nsenter", f"--net={world.engine.host_netns}", sys.executable, "-c", QUEUE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout and program.stdout.readline() == "ready\n"
            end = ping("c1 {out}", 4, 1).only("request")["end"]
        finally:
            program.kill()
    assert (end["result"], end["rule"]["verdict"], names(end)) == ("dropped", "queue", ["queue_unread"])
    assert "to a program, which dropped it" in end["causes"][0]["sentence"]


def names(end: Row) -> list[str]:
    return [found["name"] for found in end["causes"]]


def rule(end: Row) -> tuple[str, str, str, str | None]:
    return end["rule"]["family"], end["rule"]["table"], end["rule"]["chain"], end["rule"]["rule"]


@pytest.fixture(scope="module")
def web(engine: Engine, routed: World) -> Iterator[str]:
    """Another network, web, with c3: the name of its bridge."""
    engine.docker("network", "create", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd00:77::/64", "web")
    engine.run("c3", "--network", "web")
    routed.add("c3", "web")
    yield "br-" + engine.docker("network", "inspect", "-f", "{{.Id}}", "web")[:12]
    engine.remove("c3")
    engine.docker("network", "rm", "web")


def test_S04_two_networks(world: World, ping: Ping, web: str) -> None:
    def see(version: int) -> None:
        output = ping("c1 c3 {six}", version, 1)
        end = output.only("request")["end"]
        guards = world.engine.guards
        assert (end["result"], end["node"], end["stage"], end["rule"]["verdict"]) == (
            "dropped", "host", "prerouting" if guards else "forward", "drop")
        tool = world.words[version]["ipt"]
        assert (guards or end["rule"]["chain"].startswith("DOCKER")) and end["rule"]["rule"] in world.saved(tool)
        assert end["rule"]["owner"] == "Docker, network web"
        assert names(end) == ["networks_isolated"]
        assert end["mend"] == "docker network connect web c1"
        assert "c1 (network bridge) and c3 (network web)" in end["causes"][0]["sentence"]
        assert output.way(output.only("request")) == isolated(world.engine, "c1", "docker0", web)

    both(see)
    world.engine.docker("network", "connect", "web", "c1")
    try:
        both(lambda version: ping("c1 c3 {six}", version, 0))
    finally:
        world.engine.docker("network", "disconnect", "web", "c1")


def test_S04_what_a_person_forbids_is_not_what_docker_isolates(world: World, ping: Ping, web: str) -> None:
    for version in (4, 6):
        world.run(f"{{unguard}}\n{{ipt}} -I FORWARD -i docker0 -o {web} -j DROP", version)

    def see(version: int) -> None:
        end = ping("c1 c3 {six}", version, 1).only("request")["end"]
        assert names(end) == ["firewall_rule"]
        assert end["mend"] == world.say(f"{{ipt}} -t filter -D FORWARD -i docker0 -o {web} -j DROP", version)

    both(see)


FIREWALLD = """
table inet firewalld {{
    chain filter_FORWARD {{
        type filter hook forward priority filter + 10; policy accept;
        ct state {{ established, related }} accept
        ct status dnat accept
        iifname "lo" accept
        jump filter_FORWARD_ZONES
        ct state invalid drop
        reject with icmpx admin-prohibited
    }}
    chain filter_FORWARD_ZONES {{
        iifname "eth0" goto filter_FWD_public
    }}
    chain filter_FWD_public {{
        reject with icmpx admin-prohibited
    }}
    chain filter_INPUT {{
        type filter hook input priority filter + 10; policy accept;
        ct state {{ established, related }} accept
        iifname "lo" accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        ct state invalid drop
        reject with icmpx admin-prohibited
    }}
}}
"""


def test_S09_firewalld_rejects_what_docker_lets_pass(world: World, ping: Ping) -> None:
    world.load(world.say(FIREWALLD, 4))

    def see(version: int) -> None:
        for target, chain, cause in (("{out}", "filter_FORWARD", "accepted_then_dropped"),
                                     ("host", "filter_INPUT", "host_input_blocked")):
            output = ping(f"c1 {target} {{six}}", version, 1)
            end = output.only("request")["end"]
            assert rule(end)[:3] == ("inet", "firewalld", chain)
            assert (end["result"], end["rule"]["verdict"], end["rule"]["owner"]) == ("dropped", "reject", "firewalld")
            assert end["rule"]["rule"].startswith("reject with icmpx ")
            assert names(end) == [cause]
            assert end["mend"] == "firewall-cmd --zone=docker --change-interface=docker0"
            error = output.only("error")
            assert (error["end"]["result"], error["end"]["node"], error["packet"]["icmp_code"]) == (
                "delivered", "c1", {4: 13, 6: 1}[version])

    both(see)


UFW = """*filter
:INPUT DROP [0:0]
:{u}-before-input - [0:0]
:{u}-after-input - [0:0]
:{u}-user-input - [0:0]
:{u}-reject-input - [0:0]
-A INPUT -j {u}-before-input
-A INPUT -j {u}-after-input
-A INPUT -j {u}-reject-input
-A {u}-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A {u}-before-input -p {icmp} -j ACCEPT
-A {u}-before-input -j {u}-user-input
-A {u}-user-input -p tcp -m tcp --dport 8080 -j DROP
COMMIT
"""


@pytest.fixture
def ufw(world: World) -> World:
    for version in (4, 6):
        rules = world.say(UFW.replace("{u}", {4: "ufw", 6: "ufw6"}[version]), version)
        done = world.engine.on_host(world.say("{ipt}-restore", version), "-n", input=rules, stdin=None)
        assert done.returncode == 0, done.stderr
    return world


def test_S11_ufw_denies_and_the_port_is_open_all_the_same(ufw: World, ping: Ping) -> None:
    def see(version: int) -> None:
        output = ping("{WAN} {host} --tcp 8080", version, 0)
        end = output.only("request")["end"]
        assert (end["result"], end["node"], end["rule"], end["cause"], end["mend"]) == ("delivered", "c2", None, None, None)
        assert [(c["name"], c["remark"]) for c in end["causes"]] == [("input_not_met", True)]
        assert "filter/INPUT" in end["causes"][0]["sentence"] and "DOCKER-USER" in end["causes"][0]["mend"]
        path(output, ufw, "wan c2")

    both(see)


def test_S21_ufw_denies_a_container_what_the_host_publishes(ufw: World, ping: Ping) -> None:
    def see(version: int) -> None:
        user = {4: "ufw-user-input", 6: "ufw6-user-input"}[version]
        end = ping("c1 host --tcp 8080 {six}", version, 1).only("request")["end"]
        assert rule(end)[1:] == ("filter", user, f"-A {user} -p tcp -m tcp --dport 8080 -j DROP")
        assert (end["rule"]["owner"], names(end)) == ("ufw", ["host_input_blocked"])
        assert end["mend"] == "ufw allow in on docker0 to any port 8080 proto tcp"
        end = ping("c1 host --tcp 22 {six}", version, 1).only("request")["end"]
        assert (end["rule"]["policy"], end["rule"]["chain"], names(end)) == (True, "INPUT", ["chain_policy"])
        assert end["mend"] == "ufw allow in on docker0 to any port 22 proto tcp"

    both(see)


def test_S15_what_conntrack_calls_invalid_is_not_translated(world: World, ping: Ping) -> None:
    """c2 answers with flags that TCP does not know together."""
    for version in (4, 6):
        world.run('{in_c2} nft "add table {nf} own; add chain {nf} own base {{ type filter hook output priority 0; }}; '
                  'add rule {nf} own base tcp flags & (syn | ack) == syn | ack tcp flags set syn | fin | ack"', version)

    def see(version: int) -> None:
        reply = ping("{WAN} {host} --tcp 8080", version, 1).of("reply")[0]
        assert {hop["conntrack"] for hop in reply["hops"] if hop["node"] == "host" and hop["conntrack"]} == {"INVALID"}
        assert [hop["rewrite"] for hop in reply["hops"] if hop["rewrite"]] == []
        assert (reply["packet"]["src"], names(reply["end"])) == (world.words[version]["c2"], ["invalid_skips_nat"])
        assert f"source still {world.words[version]['c2']}" in reply["end"]["causes"][0]["evidence"]
        world.run('nft "add table {nf} late; add chain {nf} late base {{ type filter hook forward priority 5; }}; '
                  'add rule {nf} late base ct state invalid drop"', version)
        end = ping("{WAN} {host} --tcp 8080", version, 1).of("reply")[0]["end"]
        assert end["result"] == "dropped"
        assert rule(end) == (world.words[version]["nf"], "late", "base", "ct state invalid drop")
        assert names(end) == ["accepted_then_dropped", "invalid_skips_nat"]

    both(see)


def test_S22_S23_the_userland_proxy(world: World, ping: Ping) -> None:
    """It takes the connection, whether somebody listens behind it or not."""
    world.engine.run("dead", "-p", "8099:99")
    try:
        for port, behind, reason in ((8080, "delivered", None), (8099, "dropped", "NO_SOCKET")):
            output = ping(f"c1 {{host}} --tcp {port}", 4, 0)
            request, relay = output.only("request"), output.only("relay")
            assert (request["end"]["result"], request["end"]["node"], names(request["end"])) == ("relayed", "host", [])
            assert (relay["parent"], relay["end"]["result"], relay["end"]["reason"]) == (request["id"], behind, reason)
            assert names(relay["end"]) == (["nothing_listens"] if reason else [])
    finally:
        world.engine.remove("dead")


def test_S27_a_reload_flushed_docker_s_rules(world: World, ping: Ping) -> None:
    for version in (4, 6):
        world.run("{ipt} -t nat -F\n{ipt} -F\n{ipt} -A INPUT -i eth0 -p tcp -m tcp --dport 8080 -j DROP", version)

    def see(version: int) -> None:
        output = ping("{WAN} {host} --tcp 8080", version, 1)
        end = output.only("request")["end"]
        assert (end["stage"], names(end)[0], end["mend"]) == ("input", "docker_rules_missing", "systemctl restart docker")
        assert rule(end) == (world.words[version]["family"], "filter", "INPUT",
                             "-A INPUT -i eth0 -p tcp -m tcp --dport 8080 -j DROP")
        path(output, world, "wan host")
        world.run("{ipt} -F INPUT", version)
        end = ping("{WAN} {host} --tcp 8080", version, 0).only("request")["end"]  # the proxy takes it
        assert (end["result"], end["cause"], [(c["name"], c["remark"]) for c in end["causes"]]) == (
            "relayed", None, [("untranslated", True)])

    both(see)


def test_S34_published_on_127_0_0_1(world: World, ping: Ping) -> None:
    world.engine.run("inside", "-p", "127.0.0.1:8090:80", command=("httpd", "-f", "-p", "0.0.0.0:80"))
    world.add("inside")
    try:
        output = ping("{WAN} {host} --tcp 8090", 4, 0)
        end = output.only("request")["end"]
        assert (end["result"], end["node"], end["reason"], end["rule"]) == ("dropped", "host", "NO_SOCKET", None)
        assert names(end) == ["published_elsewhere"]
        assert "127.0.0.1" in end["causes"][0]["sentence"] and "-p 8090:80" in end["mend"]
        assert output.summary["states"] == {"refused": 1}
        path(output, world, "wan host")
        assert ping("host 127.0.0.1 --tcp 8090", 4, 0).only("request")["end"]["result"] == "relayed"
        end = ping("c1 {inside} --tcp 80", 6, 0).only("request")["end"]
        assert names(end) == ["listens_elsewhere"] and "listens on 0.0.0.0 only" in end["causes"][0]["sentence"]
    finally:
        world.engine.remove("inside")


@pytest.fixture
def inner(engine: Engine, world: World) -> Iterator[World]:
    """i1 on a network that is internal, i2 and i3 on one whose containers may not talk to each other."""
    engine.docker("network", "create", "--internal", "--ipv6", "--subnet", "10.78.0.0/24", "--subnet", "fd00:78::/64",
                  "shut")
    engine.docker("network", "create", "-o", "com.docker.network.bridge.enable_icc=false", "--ipv6", "--subnet",
                  "10.79.0.0/24", "--subnet", "fd00:79::/64", "mute")
    for name, network in (("i1", "shut"), ("i2", "mute"), ("i3", "mute")):
        engine.run(name, "--network", network)
        world.add(name, network)
    yield world
    engine.remove("i1", "i2", "i3")
    engine.docker("network", "rm", "shut", "mute")


def test_S37_S07_an_internal_network_and_icc_off(inner: World, ping: Ping) -> None:
    def see(version: int) -> None:
        output = ping("i1 {out} {six}", version, 1)
        failed = [failure["cause"] for failure in output.summary["failures"] if failure["cause"]]
        # no packet was made, where the engine gives such a network no default route; else the host drops it
        found = failed or output.only("request")["end"]["causes"]
        assert found[0]["name"] == ("no_route_in_sender" if failed else "network_internal")
        assert found[0]["mend"] == "docker network connect bridge i1"
        assert failed or output.only("request")["end"]["rule"]["owner"] == "Docker, network shut"

    both(see)
    bridge = "br-" + inner.engine.docker("network", "inspect", "-f", "{{.Id}}", "mute")[:12]
    for version in (4, 6):
        inner.run("{in_i2} ip neigh replace {i3} lladdr {mac_i3} dev eth0 nud stale", version)
        end = ping("i2 i3 {six}", version, 1).only("request")["end"]
        assert (end["rule"]["owner"], end["rule"]["verdict"]) == ("Docker, network mute", "drop")
        assert names(end) == ["icc_off"] and f"-i {bridge} -o {bridge}" in end["rule"]["rule"]
        assert "--icc=false" in end["causes"][0]["sentence"] and "enable_icc=false" in end["mend"]


def test_S36_what_a_filter_does_to_neighbour_discovery(world: World, ping: Ping) -> None:
    """Solicitations are frames that a bridge floods: br_netfilter shows them to ip6tables, too."""
    world.run("{in_c1} ip -6 neigh flush all\n{ipt} -I FORWARD -p {icmp} -j DROP", 6)
    end = ping("c1 c2 -6", 6, 1).only("request")["end"]
    assert (end["result"], end["node"], names(end)) == ("unknown", "c1", ["bridged_traffic_filtered"])
    assert "filter/FORWARD: -A FORWARD -p ipv6-icmp -j DROP" in end["causes"][0]["evidence"]
    assert end["mend"] == "sysctl -w net.bridge.bridge-nf-call-ip6tables=0"
    world.run(end["mend"])
    assert names(ping("c1 c2 -6", 6, 0).only("request")["end"]) == []


CHECKSUMS = [
    (4, "c1 c2", "icmp type echo-request @th,128,16 set 7", "ICMP_CSUM"),
    (6, "c1 c2 -6", "icmpv6 type echo-request @th,128,16 set 7", "ICMP_CSUM"),
    (4, "c1 c2", "icmp type echo-request @nh,80,16 set 7", "IP_CSUM"),
    (4, "c1 c2 --tcp 80", "tcp dport 80 @th,128,16 set 7", "TCP_CSUM"),
    (6, "c1 c2 -6 --tcp 80", "tcp dport 80 @th,128,16 set 7", "TCP_CSUM"),
    (4, "c1 c2 --udp 80", "udp dport 80 @th,48,16 set 7", "UDP_CSUM")]


@pytest.mark.parametrize(("version", "probe", "rules", "reason"), CHECKSUMS, ids=[f"{v}-{r}" for v, _p, _r, r in CHECKSUMS])
def test_S43_a_wrong_checksum(world: World, ping: Ping, version: int, probe: str, rules: str, reason: str) -> None:
    """Rules that write into a packet without mending its checksum."""
    world.load(f"table bridge own {{ chain base {{ type filter hook postrouting priority 0; {rules}; }}; }}")
    end = ping(probe, version, 1).only("request")["end"]
    assert (end["result"], end["node"], end["reason"], names(end)) == ("dropped", "c2", reason, ["bad_checksum"])


def test_S43_a_wrong_header_that_br_netfilter_looks_at(world: World, ping: Ping) -> None:
    world.load("table bridge own { chain base { type filter hook prerouting priority -310; ip protocol icmp "
               "@nh,80,16 set 7; }; }")
    end = ping("c1 c2", 4, 1).only("request")["end"]
    assert (end["result"], end["node"]) == ("dropped", "host")
    if end["reason"] == "NOT_SPECIFIED" and "DNETTRACE_VM" in os.environ:
        assert (end["function"], names(end)) == ("br_handle_frame", [])  # older kernels do not say why: no cause either
    else:
        assert (end["reason"], names(end)) == ("IP_INHDR", ["bad_header"])


def test_without_br_netfilter_no_rule_of_ip_sees_what_is_switched(world: World, ping: Ping) -> None:
    world.run("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
    for version in (4, 6):
        world.run("{ipt} -I FORWARD -i docker0 -o docker0 -j DROP\n{ipt} -P FORWARD DROP", version)

    def see(version: int) -> None:
        output = ping("c1 c2 {six}", version, 0)
        request = output.only("request")
        assert (request["end"]["result"], request["end"]["causes"]) == ("delivered", [])
        assert [hop["stage"] for hop in request["hops"] if hop["node"] == "host"] == ["ingress", "l2_forward", "egress"]

    both(see)


@pytest.mark.parametrize(("chain", "owner"), [
    ("KUBE-FIREWALL", "kubelet"), ("KUBE-FORWARD", "kube-proxy"), ("NETAVARK_FORWARD", "podman"), ("f2b-sshd", "fail2ban")])
def test_whose_rule_it_is(world: World, ping: Ping, chain: str, owner: str) -> None:
    for version in (4, 6):
        world.run(f"{{ipt}} -N {chain}\n{{ipt}} -I FORWARD -j {chain}\n"
                  f"{{ipt}} -A {chain} -p {{icmp}} {{echo}} -j DROP", version)

    def see(version: int) -> None:
        end = ping("c1 {out} {six}", version, 1).only("request")["end"]
        assert rule(end)[2:] == (chain, world.say(f"-A {chain} -p {{icmp}} {{echo}} -j DROP", version))
        assert (end["rule"]["owner"], names(end), end["mend"]) == (owner, ["firewall_rule"], None)
        assert f"rule of {owner} " in end["causes"][0]["sentence"]

    both(see)


# What Docker 29's nftables backend writes for docker0 (moby, integration/network/bridge/nftablesdoc).
DOCKER_NFT = """
table {nf} docker-bridges {{
    map filter-forward-in-jumps {{
        type ifname : verdict
        elements = {{ "docker0" : jump filter-forward-in__docker0 }}
    }}
    map filter-forward-out-jumps {{
        type ifname : verdict
        elements = {{ "docker0" : jump filter-forward-out__docker0 }}
    }}
    chain filter-FORWARD {{
        type filter hook forward priority filter; policy accept;
        oifname vmap @filter-forward-in-jumps
        iifname vmap @filter-forward-out-jumps
    }}
    chain raw-PREROUTING {{
        type filter hook prerouting priority raw; policy accept;
    }}
    chain filter-forward-in__docker0 {{
        ct state established,related counter accept
        iifname "docker0" counter accept comment "ICC"
        counter drop comment "UNPUBLISHED PORT DROP"
    }}
    chain filter-forward-out__docker0 {{
        ct state established,related counter accept
        counter accept comment "OUTGOING"
    }}
}}
"""
INTO = "filter-forward-in__docker0"
BY_NFT = [
    ("", "{WAN} {c2} --tcp 81", (INTO, 'counter drop comment "UNPUBLISHED PORT DROP"'), "port_not_published",
     "create c2 anew with `-p HOSTPORT:81`"),
    (f"insert rule {{nf}} docker-bridges {INTO}", "c1 c2", (INTO, 'iifname "docker0" counter drop comment "ICC"'), "icc_off",
     None),
    ("add rule {nf} docker-bridges raw-PREROUTING", "{WAN} {c2} --tcp 80",
     ("raw-PREROUTING", '{nf} daddr {c2} iifname != "docker0" counter drop comment "DROP DIRECT ACCESS"'),
     "direct_access_blocked", "publish the port: `docker run -p HOSTPORT:80`")]


def test_docker_s_nftables_backend(world: World, ping: Ping) -> None:
    for version in (4, 6):
        world.run("{in_c1} ip neigh replace {c2} lladdr {mac_c2} dev eth0 nud stale\n{unguard}\n{ipt} -F FORWARD\n"
                  "{ipt} -P FORWARD ACCEPT", version)
        world.load(world.say(DOCKER_NFT, version))

    def see(version: int) -> None:
        for add, probe, (chain, text), cause, mend in BY_NFT:
            if add:
                world.engine.on_host("nft", f"{world.say(add, version)} {world.say(text, version)}")
            end = ping(f"{probe} {{six}}", version, 1).only("request")["end"]
            assert rule(end) == (world.words[version]["nf"], "docker-bridges", chain, world.say(text, version))
            assert (end["rule"]["owner"], names(end), end["mend"]) == ("Docker, network bridge", [cause], mend)

    both(see)
