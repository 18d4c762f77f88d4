"""More bridges than one: nested, several networks for a container, none, and bridges that no engine made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.functional.conftest import Ping
from tests.functional.engine import Engine
from tests.functional.way import arriving, end, from_host, isolated, leaving, read, routes, switched, to_host


@contextmanager
def built(engine: Engine, names: list[str], commands: list[str], links: list[str]) -> Iterator[None]:
    """Namespaces of these names, and what the commands make on the engine's host; `links` go with the namespaces."""
    try:
        for command in [*(f"ip netns add {name}" for name in names), *commands]:
            done = engine.on_host(*command.split())
            assert done.returncode == 0, f"{command}: {done.stderr}"
        yield
    finally:
        for name in names:
            engine.on_host("ip", "netns", "del", name)
        for link in links:
            engine.on_host("ip", "link", "del", link)


@contextmanager
def networks(engine: Engine, *names: str) -> Iterator[list[str]]:
    """Networks of these names; their bridges."""
    for name in names:
        engine.docker("network", "create", name)
    try:
        yield ["br-" + engine.docker("network", "inspect", "-f", "{{.Id}}", name)[:12] for name in names]
    finally:
        engine.docker("network", "rm", *names)


def hung(leaf: str, port: str, address: str, bridge: str, netns: str = "") -> list[str]:
    """Commands that hang the namespace `leaf` with this address on a bridge (of `netns`, else of the host)."""
    ip = f"ip -n {netns}" if netns else "ip"
    return [f"{ip} link add {port} type veth peer name eth0 netns {leaf}", f"{ip} link set {port} master {bridge} up",
            f"ip -n {leaf} addr add {address} dev eth0", f"ip -n {leaf} link set eth0 up", f"ip -n {leaf} link set lo up"]


def on_br9(source: str, target: str) -> list[str]:
    """The whole way over br9, whose ports have the names of what hangs on them."""
    name = {f"veth>{end}": f"p{end[-1]}" for end in (source, target)}
    return [" ".join(name.get(word, word) for word in hop.split()) for hop in switched(source, target, "br9")]


def test_a_bridge_that_is_not_docker_s(ping: Ping, engine: Engine) -> None:
    """Docker's FORWARD policy is for it too, since br_netfilter asks it; with a rule, it is a bridge as any."""
    a, b = f"{engine.name}-a", f"{engine.name}-b"
    rule = ["DOCKER-USER", "-i", "br9", "-o", "br9", "-j", "ACCEPT"]
    with built(engine, [a, b], ["ip link add br9 type bridge", "ip link set br9 up", *hung(a, "pa", "10.9.0.2/24", "br9"),
                                *hung(b, "pb", "10.9.0.3/24", "br9")], ["br9"]):
        output = read(ping(f"netns:{a}", f"netns:{b}"), status=1)
        whole = on_br9(a, b)
        assert output.way(output.only("request")) == whole[:whole.index("host br9 forward") + 1]
        assert end(output, "request") == ("dropped", "host", "NETFILTER_DROP")
        engine.on_host("iptables", "-I", *rule)
        try:
            output = read(ping(f"netns:{a}", f"netns:{b}"))
        finally:
            engine.on_host("iptables", "-D", *rule)
        assert output.way(output.only("request")) == whole
        assert output.way(output.only("reply")) == on_br9(b, a)
        assert (end(output, "request"), end(output, "reply")) == (("delivered", b, None), ("delivered", a, None))
        assert output.summary["bridges"] == {"br9": ["switch"]}


def test_a_bridge_behind_docker0_in_another_namespace(ping: Ping, engine: Engine) -> None:
    """Both are switches on the way, and a broadcast is followed through both floods."""
    nest, leaf = f"{engine.name}-nest", f"{engine.name}-leaf"
    commands = [f"ip link add vnest type veth peer name up0 netns {nest}", "ip link set vnest master docker0 up",
                f"ip -n {nest} link add br0 type bridge", f"ip -n {nest} link set br0 up",
                f"ip -n {nest} link set up0 master br0 up", *hung(leaf, "vleaf", "172.17.0.100/16", "br0", nest)]
    with built(engine, [nest, leaf], commands, []):
        output = read(ping("c1", f"netns:{leaf}"))
        there = switched("c1", leaf)
        at = there.index(f"host veth>{leaf} egress")
        assert output.way(output.only("request")) == [
            *there[:at], "host vnest egress", f"{nest} up0 ingress", f"{nest} br0 l2_forward switch", f"{nest} vleaf egress",
            *there[at + 1:]]
        assert output.way(output.only("reply")) == [
            *leaving(leaf)[:4], f"{nest} vleaf ingress", f"{nest} br0 l2_forward switch", f"{nest} up0 egress",
            "host vnest ingress", *switched(leaf, "c1")[5:]]
        asks, tells = output.of("arp")
        assert output.way(asks) == [
            "c1 eth0 egress", "host veth>c1 ingress", "host docker0 l2_flood switch", "host vnest egress",
            f"{nest} up0 ingress", f"{nest} br0 l2_flood switch", f"{nest} vleaf egress", f"{leaf} eth0 ingress",
            f"{leaf} - deliver"]
        assert {copy["end"]["node"]: copy["parent"] for copy in output.of("copy")} == dict.fromkeys(
            ["host", nest, "c2"], asks["id"])
        assert tells["end"]["node"] == "c1"
        assert (end(output, "request"), end(output, "reply")) == (("delivered", leaf, None), ("delivered", "c1", None))
        assert output.summary["bridges"] == {"br0": ["switch"], "docker0": ["switch"]}


def test_a_router_behind_docker0_with_a_bridge_of_its_own(ping: Ping, engine: Engine) -> None:
    """docker0 is a switch on the way to the router, whose own bridge is a NIC."""
    router, leaf = f"{engine.name}-router", f"{engine.name}-leaf"
    commands = [f"ip link add vrouter type veth peer name up0 netns {router}", "ip link set vrouter master docker0 up",
                f"ip -n {router} link add br0 type bridge", f"ip -n {router} addr add 10.99.0.1/24 dev br0",
                f"ip -n {router} addr add 172.17.0.50/16 dev up0", f"ip -n {router} link set br0 up",
                f"ip -n {router} link set up0 up", f"ip netns exec {router} sysctl -qw net.ipv4.ip_forward=1",
                *hung(leaf, "vleaf", "10.99.0.2/24", "br0", router), f"ip -n {leaf} route add default via 10.99.0.1",
                f"nsenter --net=/proc/{engine.pid('c1')}/ns/net ip route add 10.99.0.0/24 via 172.17.0.50"]
    with built(engine, [router, leaf], commands, []):
        output = read(ping("c1", "10.99.0.2"))
        request, reply = output.only("request"), output.only("reply")
        there, back = switched("c1", router), switched(router, "c1")
        assert output.way(request) == [
            *there[:there.index(f"host veth>{router} egress")], "host vrouter egress", f"{router} up0 ingress",
            f"{router} br0 route", f"{router} br0 egress nic", f"{router} br0 l2_forward switch", f"{router} vleaf egress",
            *arriving(leaf)]
        assert output.way(reply) == [
            *leaving(leaf)[:4], f"{router} vleaf ingress", f"{router} br0 l2_local nic", f"{router} up0 route",
            f"{router} up0 egress", "host vrouter ingress", *back[back.index("host docker0 prerouting"):]]
        assert routes(request)[:2] == [("c1", "10.99.0.0/24 via 172.17.0.50 dev eth0 (table main)"),
                                       (router, "10.99.0.0/24 dev br0 (table main)")]
        assert (end(output, "request"), end(output, "reply")) == (("delivered", leaf, None), ("delivered", "c1", None))
        assert output.summary["bridges"] == {"br0": ["nic", "switch"], "docker0": ["switch"]}


def test_a_bridge_that_a_cable_joins_to_docker0(ping: Ping, engine: Engine) -> None:
    leaf = f"{engine.name}-c"
    rules = [["DOCKER-USER", "-m", "physdev", "--physdev-is-bridged", "-j", "ACCEPT"]]
    if engine.guards:  # to it, c1 is not behind br9
        rules.append(["PREROUTING", "-t", "raw", "-i", "br9", "-j", "ACCEPT"])
    commands = ["ip link add br9 type bridge", "ip link set br9 up", "ip link add cable0 type veth peer name cable9",
                "ip link set cable0 master docker0 up", "ip link set cable9 master br9 up",
                *hung(leaf, "pc", "172.17.0.101/16", "br9"), *("iptables -I " + " ".join(rule) for rule in rules)]
    with built(engine, [leaf], commands, ["br9", "cable0"]):
        try:
            output = read(ping("c1", f"netns:{leaf}"))
        finally:
            for rule in rules:
                engine.on_host("iptables", "-D", *rule)
        assert output.way(output.only("request")) == [
            *switched("c1", "x")[:9], "host cable0 egress", "host cable9 ingress", *on_br9("x", leaf)[5:]]
        assert end(output, "request") == ("delivered", leaf, None)
        assert output.summary["bridges"] == {"br9": ["switch"], "docker0": ["switch"]}


def test_a_container_on_two_networks_takes_the_one_that_it_shares(ping: Ping, engine: Engine) -> None:
    with networks(engine, "left", "right") as (left, right):
        engine.run("l1")
        engine.docker("network", "connect", "left", "l1")
        engine.run("r1", "--network", "left")
        engine.docker("network", "connect", "right", "r1")
        try:
            output = read(ping("l1", "r1"))
            assert output.way(output.only("request")) == switched("l1", "r1", left, "eth1", "eth0")
            assert output.way(output.only("reply")) == switched("r1", "l1", left, "eth0", "eth1")
            assert output.start["source"]["on"]["bridge"] == output.start["destination"]["on"]["bridge"] == left
            chosen = output.only("request")["hops"][0]["route"]
            assert (chosen["device"], chosen["source"]) == ("eth1", output.start["source"]["address"])
            assert output.only("request")["hops"][0]["route"]["losers"] == ["default via 172.17.0.1 dev eth0"]
            # its address on the network that they do not share: by the default gateway, where isolation ends it
            address = engine.docker("inspect", "-f", "{{.NetworkSettings.Networks.right.IPAddress}}", "r1")
            output = read(ping("l1", address), status=1)
            assert output.way(output.only("request")) == isolated(engine, "l1", "docker0", right)
        finally:
            engine.remove("l1", "r1")


def test_host_networking_is_said(ping: Ping, engine: Engine) -> None:
    engine.run("hosted", "--network", "host")
    try:
        output = read(ping("hosted", "c1"))
        assert output.start["notes"] == ["hosted runs with --network host: to the network it is the host"]
        assert output.way(output.only("request")) == from_host("c1")
        output = read(ping("c1", "hosted"))
        assert output.way(output.only("request")) == to_host("c1")
        assert end(output, "request") == ("delivered", "host", None)
    finally:
        engine.remove("hosted")


def test_a_shared_namespace_is_said(ping: Ping, engine: Engine) -> None:
    engine.run("sidecar", "--network", "container:c1")
    try:
        output = read(ping("sidecar", "c2"))
        assert output.start["notes"] == ["sidecar shares the network namespace of c1"]
        assert output.way(output.only("request")) == switched("sidecar", "c2")
        assert output.way(output.only("reply")) == switched("c2", "sidecar")
    finally:
        engine.remove("sidecar")


def test_an_internal_network_has_a_switch_and_no_way_out(ping: Ping, engine: Engine) -> None:
    engine.docker("network", "create", "--internal", "inner")
    bridge = "br-" + engine.docker("network", "inspect", "-f", "{{.Id}}", "inner")[:12]
    try:
        engine.run("i1", "--network", "inner")
        engine.run("i2", "--network", "inner")
        output = read(ping("i1", "i2"))
        assert output.way(output.only("request")) == switched("i1", "i2", bridge)
        assert output.way(output.only("reply")) == switched("i2", "i1", bridge)
        output = read(ping("i1", "203.0.113.1"), status=1)
        if output.start["notes"]:  # the engine gives it no default route
            assert output.start["notes"] == ["i1 has no route to 203.0.113.1"]
            assert output.summary["failures"][0]["text"].startswith("never left: ")
        else:  # it has one, and the host does not forward
            assert output.way(output.only("request")) == [
                *leaving("i1"), f"host {bridge} prerouting", f"host {bridge} l2_local nic", "host eth0 route",
                f"host {bridge} forward"]
            assert end(output, "request") == ("dropped", "host", "NETFILTER_DROP")
    finally:
        engine.remove("i1", "i2")
        engine.docker("network", "rm", "inner")
