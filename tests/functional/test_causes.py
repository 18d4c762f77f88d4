"""Faults built for real on an engine: the cause that is told, and that its mend mends it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.functional.conftest import Dnettrace
from tests.functional.engine import Engine
from tests.functional.pinging import answers
from tests.functional.way import Output, read

Ping = Callable[..., Output]
OUTSIDE, SIX = "203.0.113.1", "2001:db8:1::1"


@dataclass(frozen=True)
class Fault:
    """Commands run at the host. {c1} and {c2} enter a container, {wan} the namespace outside; {p1} and {p2} are ports.

    {mac} is c2's. {guard} is iptables where it guards containers from direct access, nothing elsewhere.
    """

    name: str  # of the cause
    build: str  # commands, separated by ;
    undo: str
    ping: str
    end: tuple[str, str | None, str | None]  # result, node, reason
    mend: str | None  # the command; None: it is a sentence
    kind: str = "request"
    status: int = 1


FAULTS = {
    "S12 forwarding is off": Fault(
        "forwarding_off", "sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1", f"c1 {OUTSIDE}",
        ("dropped", "host", "IP_INADDRERRORS"), "sysctl -w net.ipv4.ip_forward=1"),
    "S36 forwarding is off, IPv6": Fault(
        "forwarding_off", "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "sysctl -qw net.ipv6.conf.all.forwarding=1", f"c1 {SIX}",
        ("dropped", "host", "IP_INADDRERRORS"), "sysctl -w net.ipv6.conf.all.forwarding=1"),
    "S33 nobody has the address": Fault(
        "nobody_has_address", "", "", "c1 172.17.0.99 -W 4", ("dropped", "c1", "NEIGH_FAILED"), None),
    "S33 nobody has the address, IPv6": Fault(
        "nobody_has_address", "", "", "c1 fd00:17::99 -W 4", ("dropped", "c1", "NOT_SPECIFIED"), None),
    "S33 its owner does not answer": Fault(
        "neighbor_does_not_answer", "{c2} sysctl -qw net.ipv4.conf.eth0.arp_ignore=8; {c1} ip neigh flush all",
        "{c2} sysctl -qw net.ipv4.conf.eth0.arp_ignore=0", "c1 c2 -W 4", ("dropped", "c1", "NEIGH_FAILED"),
        "{c2} sysctl -w net.ipv4.conf.eth0.arp_ignore=0"),
    "S31 the default gateway does not exist": Fault(
        "wrong_gateway", "{c1} ip route replace default via 172.17.0.99", "{c1} ip route replace default via 172.17.0.1",
        f"c1 {OUTSIDE}", ("unknown", "c1", None), "{c1} ip route replace default via 172.17.0.1 dev eth0"),
    "S29 the bridge is down": Fault(
        "bridge_down", "ip link set docker0 down",
        "ip link set docker0 up; ip -6 address replace fd00:17::1/64 dev docker0 nodad", "c1 172.17.0.1",
        ("dropped", "host", "BRIDGE_INGRESS_STP_STATE"), "ip link set docker0 up"),
    "S29 the bridge has no address": Fault(
        "bridge_without_address", "ip address del 172.17.0.1/16 dev docker0; {c1} ip neigh flush all",
        "ip address replace 172.17.0.1/16 dev docker0", f"c1 {OUTSIDE}", ("unknown", "c1", None),
        "ip address add 172.17.0.1/16 dev docker0"),
    "S25 the port's MTU": Fault(
        "port_mtu_too_small", "ip link set {p2} mtu 1300", "ip link set {p2} mtu 1500", "c1 c2 -s 1400",
        ("dropped", "host", "NOT_SPECIFIED"), "ip link set {p2} mtu 1500"),
    "S25 the port's MTU, without br_netfilter": Fault(
        "port_mtu_too_small", "sysctl -qw net.bridge.bridge-nf-call-iptables=0; ip link set {p2} mtu 1300",
        "ip link set {p2} mtu 1500; sysctl -qw net.bridge.bridge-nf-call-iptables=1", "c1 c2 -s 1400",
        ("dropped", "host", "NOT_SPECIFIED"), "ip link set {p2} mtu 1500"),
    "S25 the port's MTU, IPv6": Fault(
        "port_mtu_too_small", "ip link set {p2} mtu 1300", "ip link set {p2} mtu 1500; {c1} ip -6 route flush cache",
        "c1 c2 -6 -s 1400", ("dropped", "host", "NOT_SPECIFIED"), "ip link set {p2} mtu 1500"),
    "a smaller MTU on the way out": Fault(
        "route_mtu_too_small", "ip link set eth0 mtu 1300", "ip link set eth0 mtu 1500; {c1} ip route flush cache",
        f"c1 {OUTSIDE} -s 1400", ("dropped", "host", "PKT_TOO_BIG"), None),
    "S41 the TTL expired": Fault(
        "ttl_expired", "", "", f"c1 {OUTSIDE} --ttl 1", ("dropped", "host", "IP_INHDR"), None),
    "S41 the hop limit expired": Fault(
        "ttl_expired", "", "", f"c1 {SIX} --ttl 1", ("dropped", "host", "IP_INHDR"), None),
    "S30 the reverse path filter": Fault(
        "reverse_path", "ip route add 203.0.113.1/32 dev docker0; sysctl -qw net.ipv4.conf.eth0.rp_filter=1; "
        "{wan} ip route add 198.51.100.2/32 dev eth0 src 203.0.113.1",
        "ip route del 203.0.113.1/32 dev docker0; sysctl -qw net.ipv4.conf.eth0.rp_filter=0; "
        "{wan} ip route del 198.51.100.2/32 dev eth0 src 203.0.113.1", "netns:OUTSIDE 198.51.100.2",
        ("dropped", "host", "IP_RPFILTER"), None),
    "S18 a wrong neighbour entry": Fault(
        "wrong_mac", "{c1} ip neigh replace 172.17.0.3 lladdr 02:42:00:00:00:99 dev eth0 nud permanent",
        "{c1} ip neigh flush all", "c1 c2", ("dropped", "c2", "OTHERHOST"), "{c1} ip neigh del 172.17.0.3 dev eth0"),
    "S20 no hairpin": Fault(
        "hairpin_off", "iptables -t nat -I PREROUTING -i docker0 -d 198.51.100.2 -p tcp --dport 8077 -j DNAT "
        "--to 172.17.0.3:80; iptables -t nat -I POSTROUTING -s 172.17.0.3 -d 172.17.0.3 -j MASQUERADE",
        "iptables -t nat -D PREROUTING -i docker0 -d 198.51.100.2 -p tcp --dport 8077 -j DNAT --to 172.17.0.3:80; "
        "iptables -t nat -D POSTROUTING -s 172.17.0.3 -d 172.17.0.3 -j MASQUERADE; bridge link set dev {p2} hairpin off",
        "c2 198.51.100.2 --tcp 8077", ("dropped", "host", "NOT_SPECIFIED"), "bridge link set dev {p2} hairpin on"),
    "the port is down": Fault(
        "port_down", "ip link set {p2} down", "ip link set {p2} up", "c1 c2", ("dropped", "host", "NO_TX_TARGET"),
        "ip link set {p2} up"),
    "the container's end is down": Fault(
        "port_down", "{c2} ip link set eth0 down", "{c2} ip link set eth0 up; {c2} ip route replace default via 172.17.0.1; "
        "{c2} ip -6 address replace {six} dev eth0 nodad; {c2} ip -6 route replace default via fd00:17::1",
        "c1 172.17.0.3", ("dropped", "host", "NO_TX_TARGET"), "{c2} ip link set eth0 up"),
    "isolated ports": Fault(
        "ports_isolated", "bridge link set dev {p1} isolated on; bridge link set dev {p2} isolated on",
        "bridge link set dev {p1} isolated off; bridge link set dev {p2} isolated off", "c1 c2",
        ("dropped", "host", "NOT_SPECIFIED"), "bridge link set dev {p2} isolated off"),
    "the port gets no broadcasts": Fault(
        "flood_off", "bridge link set dev {p2} bcast_flood off; {c1} ip neigh flush all",
        "bridge link set dev {p2} bcast_flood on", "c1 c2", ("unknown", "c1", None),
        "bridge link set dev {p2} bcast_flood on"),
    "the port gets no multicasts": Fault(
        "flood_off", "bridge link set dev {p2} mcast_flood off; {c1} ip -6 neigh flush all",
        "bridge link set dev {p2} mcast_flood on", "c1 c2 -6", ("unknown", "c1", None),
        "bridge link set dev {p2} mcast_flood on"),
    "the port gets nothing for a MAC that is not learned": Fault(
        "flood_off", "bridge link set dev {p2} flood off learning off; bridge fdb del {mac} dev {p2} master",
        "bridge link set dev {p2} flood on learning on; bridge fdb replace {mac} dev {p2} master dynamic", "c1 c2",
        ("dropped", "host", "NO_TX_TARGET"), "bridge link set dev {p2} flood on"),
    "a blackhole": Fault(
        "route_refuses", "ip route add blackhole 203.0.113.1", "ip route del blackhole 203.0.113.1", f"c1 {OUTSIDE}",
        ("dropped", "host", "NOT_SPECIFIED"), "ip route del blackhole 203.0.113.1"),
    "a prohibit route": Fault(
        "route_refuses", "ip route add prohibit 203.0.113.1", "ip route del prohibit 203.0.113.1", f"c1 {OUTSIDE}",
        ("dropped", "host", "NOT_SPECIFIED"), "ip route del prohibit 203.0.113.1"),
    "a rule that refuses": Fault(
        "route_refuses", "ip rule add priority 100 from 172.17.0.0/16 iif docker0 prohibit", "ip rule del priority 100",
        f"c1 {OUTSIDE}", ("dropped", "host", "NOT_SPECIFIED"),
        "ip rule del from 172.17.0.0/16 iif docker0 prohibit priority 100"),
    "a blackhole, IPv6": Fault(
        "route_refuses", "ip -6 route add blackhole 2001:db8:1::1", "ip -6 route del blackhole 2001:db8:1::1", f"c1 {SIX}",
        ("dropped", "host", "NOT_SPECIFIED"), "ip -6 route del blackhole 2001:db8:1::1"),
    "no route at the host": Fault(
        "no_route", "ip route del default", "ip route replace default via 198.51.100.1", f"c1 {OUTSIDE}",
        ("dropped", "host", "IP_INNOROUTES"), None),
    "the host's uplink is down": Fault(
        "no_route", "ip link set eth0 down", "ip link set eth0 up; ip route replace default via 198.51.100.1; "
        "ip -6 address replace 2001:db8::2/64 dev eth0 nodad; ip -6 route replace default via 2001:db8::1", f"c1 {OUTSIDE}",
        ("dropped", "host", "IP_INNOROUTES"), None),
    "the host's uplink has no carrier": Fault(
        "no_carrier", "{wan} ip link set eth0 down",
        "{wan} ip link set eth0 up; {wan} ip -6 address replace 2001:db8::1/64 dev eth0 nodad", f"c1 {OUTSIDE}",
        ("unknown", "host", None), "{wan} ip link set eth0 up"),
    "echo requests are ignored": Fault(
        "echo_ignored", "{c2} sysctl -qw net.ipv4.icmp_echo_ignore_all=1", "{c2} sysctl -qw net.ipv4.icmp_echo_ignore_all=0",
        "c1 c2", ("delivered", "c2", None), "{c2} sysctl -w net.ipv4.icmp_echo_ignore_all=0"),
    "echo requests are ignored, IPv6": Fault(
        "echo_ignored", "{c2} sysctl -qw net.ipv6.icmp.echo_ignore_all=1", "{c2} sysctl -qw net.ipv6.icmp.echo_ignore_all=0",
        "c1 c2 -6", ("dropped", "c2", "NOT_SPECIFIED"), "{c2} sysctl -w net.ipv6.icmp.echo_ignore_all=0"),
    "no way back": Fault(
        "no_way_back", "{c1} ip route del default; {guard} -I PREROUTING -d 172.17.0.2 -j ACCEPT; "
        "iptables -I DOCKER-USER -d 172.17.0.2 -j ACCEPT; "
        "{wan} ip route add 172.17.0.0/16 via 198.51.100.2",
        "{c1} ip route replace default via 172.17.0.1; {guard} -D PREROUTING -d 172.17.0.2 -j ACCEPT; "
        "iptables -D DOCKER-USER -d 172.17.0.2 -j ACCEPT; "
        "{wan} ip route del 172.17.0.0/16 via 198.51.100.2", "netns:OUTSIDE c1",
        ("delivered", "c1", None), "{c1} ip route add default via 172.17.0.1"),
    "S14 no MASQUERADE": Fault(
        "source_not_translated", "iptables -t nat -D POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        "iptables -t nat -D POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE; "
        "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", "c1 198.51.100.1",
        ("delivered", None, None), "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"),
    "nothing listens": Fault(
        "nothing_listens", "", "", "c1 c2 --tcp 81", ("dropped", "c2", "NO_SOCKET"), None, status=0),
    "nothing listens, UDP": Fault(
        "nothing_listens", "", "", "c1 c2 --udp 81", ("dropped", "c2", "NO_SOCKET"), None, status=0),
    "nothing listens, IPv6": Fault(
        "nothing_listens", "", "", "c1 c2 -6 --tcp 81", ("dropped", "c2", "NO_SOCKET"), None, status=0),
}


@pytest.fixture(scope="module")
def words(engine: Engine) -> dict[str, str]:
    """What stands for the braces in the commands."""
    found = {"wan": f"nsenter --net={engine.wan_netns}", "guard": "iptables -t raw" if engine.guards else "true"}
    for name, port in (("c1", "p1"), ("c2", "p2")):
        found[name] = f"nsenter --net=/proc/{engine.pid(name)}/ns/net"
        link = engine.on_host(*found[name].split(), "ip", "-o", "link", "show", "eth0").stdout
        index = link.partition("@if")[2].partition(":")[0]
        names = {row.split(":")[0]: row.split(":")[1].split("@")[0].strip()
                 for row in engine.on_host("ip", "-o", "link").stdout.splitlines()}
        found[port] = names[index]
        found["mac"] = link.partition("link/ether ")[2].partition(" ")[0]
    six = engine.on_host(*found["c2"].split(), "ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "global").stdout
    found["six"] = six.partition("inet6 ")[2].partition(" ")[0]
    return found


def run(engine: Engine, words: dict[str, str], commands: str, check: bool = True) -> None:
    for command in filter(None, (part.strip() for part in commands.split(";"))):
        done = engine.on_host(*shlex.split(command.format_map(words)))
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"


@pytest.fixture
def ping(dnettrace: Dnettrace, engine: Engine) -> Ping:
    def call(words: str, status: int) -> Output:
        arguments = words.replace("OUTSIDE", f"{engine.name}-wan").split()
        return read(dnettrace("ping", "-W", "1.5", *arguments, "-c", "1", "--json", netns=engine.host_netns,
                              env=engine.env()), status)

    return call


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_its_cause_and_its_mend(what: str, ping: Ping, engine: Engine, words: dict[str, str]) -> None:
    fault = FAULTS[what]
    for address in ("172.17.0.1", "172.17.0.3", "fd00:17::1", words["six"].partition("/")[0]):  # so that c1 knows their MACs
        # an IPv6 address that is new is not used for a second (DAD)
        assert any(answers(f"/proc/{engine.pid('c1')}/ns/net", address) for _turn in range(3)), f"{address} does not answer"
    run(engine, words, fault.build)
    try:
        output = ping(fault.ping, fault.status)
        end = output.only(fault.kind)["end"]
        result, node, reason = fault.end
        assert (end["result"], end["node"] if node else None, end["reason"]) == (result, node, reason), end
        assert (end["cause"], [c["name"] for c in end["causes"]]) == (fault.name, [fault.name]), end
        assert end["causes"][0]["evidence"]
        if fault.mend:
            assert end["mend"] == fault.mend.format_map(words)
            run(engine, words, end["mend"])
            assert ping(fault.ping, 0).of(fault.kind)[0]["end"]["causes"] == []
    finally:
        run(engine, words, fault.undo, check=False)  # its mend may have done so


def test_a_published_address_a_listening_address_and_what_is_paused(ping: Ping, engine: Engine) -> None:
    engine.run("c4", "-p", "127.0.0.1:8090:80", command=("httpd", "-f", "-p", "127.0.0.1:80"))
    try:
        for source in (f"netns:{engine.name}-wan", "c1"):
            end = ping(f"{source} 198.51.100.2 --tcp 8090", 0).only("request")["end"]  # S34
            assert [c["name"] for c in end["causes"]] == ["published_elsewhere"]
            assert end["causes"][0]["evidence"][0] == "c4 publishes 80/tcp at 127.0.0.1:8090"
        end = ping("c1 c4 --tcp 80", 0).only("request")["end"]
        assert [c["name"] for c in end["causes"]] == ["listens_elsewhere"]
    finally:
        engine.remove("c4")


def test_two_networks_an_internal_one_and_none(ping: Ping, engine: Engine, words: dict[str, str]) -> None:
    engine.docker("network", "create", "web")
    engine.docker("network", "create", "--internal", "intern")
    try:
        engine.run("c3", "--network", "web")
        engine.run("i1", "--network", "intern")
        engine.run("n1", "--network", "none")
        end = ping("c1 c3", 1).only("request")["end"]  # S04
        assert (end["cause"], end["mend"]) == ("networks_isolated", "docker network connect web c1")
        assert end["causes"][0]["sentence"] == ("c1 (network bridge) and c3 (network web) are on different Docker networks, "
                                                "which Docker isolates.")
        output = ping(f"i1 {OUTSIDE}", 1)
        failures = [f["cause"] for f in output.summary["failures"] if f["cause"]]
        # S37: engines that give an internal network no default route make no packet; the others drop it at the host
        causes = failures or output.only("request")["end"]["causes"]
        assert causes[0]["name"] == ("no_route_in_sender" if failures else "network_internal")
        assert causes[0]["mend"] == "docker network connect bridge i1"
        failure = ping(f"n1 {OUTSIDE}", 1).summary["failures"][0]
        assert failure["cause"]["name"] == "no_route_in_sender"
        assert "runs without a network" in failure["cause"]["sentence"]
    finally:
        engine.remove("c3", "i1", "n1")
        engine.docker("network", "rm", "web", "intern")


def test_no_route_in_the_container(ping: Ping, engine: Engine, words: dict[str, str]) -> None:
    run(engine, words, "{c1} ip route del default")
    try:
        output = ping(f"c1 {OUTSIDE}", 1)
        (failure,) = output.summary["failures"]
        assert (output.of("request"), failure["cause"]["name"]) == ([], "no_route_in_sender")
        run(engine, words, failure["cause"]["mend"])
        assert ping(f"c1 {OUTSIDE}", 0).summary["failures"] == []
    finally:
        run(engine, words, "{c1} ip route replace default via 172.17.0.1")
