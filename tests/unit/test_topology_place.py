"""Which of the destination's addresses a packet is sent to, from namespaces built by hand."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from tracer.model.topology import Container, Link, Namespace
from tracer.topology.netns import here
from tracer.topology.place import Place, candidates, no_address


def namespace(name: str, *devices: str) -> Namespace:
    """Each device is its addresses, separated by blanks; each namespace has a loopback device too."""
    rows = ["127.0.0.1/8 ::1/128", *devices]
    links = {index: Link(index, f"eth{index}", "veth", None, 1500, True, index == 1, None, None,
                         tuple(map(ip_interface, row.split()))) for index, row in enumerate(rows, 1)}
    return Namespace(1, name, "/dev/null", links)


def chosen(source: Namespace, target: Namespace, version: int | None = None) -> list[str]:
    return [str(address) for address in candidates(source, target, version)]


C1 = namespace("c1", "172.17.0.2/16 fd00:17::2/64 fe80::2/64")
WEB = namespace("web", "172.18.0.2/16")
HOST = namespace("host", "198.51.100.2/24 2001:db8:1::2/64", "172.17.0.1/16 fd00:17::1/64", "172.18.0.1/16")
BARE = namespace("bare")
SIX = namespace("six", "fd00:17::6/64")


def test_the_address_on_a_shared_network_comes_first() -> None:
    assert chosen(C1, HOST)[0] == "172.17.0.1"
    assert chosen(WEB, HOST)[0] == "172.18.0.1"
    assert chosen(C1, namespace("two", "172.18.0.9/16", "172.17.0.9/16"))[0] == "172.17.0.9"


def test_in_its_own_order_where_none_is_shared() -> None:
    assert chosen(namespace("far", "203.0.113.1/32"), HOST) == ["198.51.100.2", "172.17.0.1", "172.18.0.1"]


def test_ipv4_before_ipv6_and_the_one_that_both_have() -> None:
    assert chosen(C1, HOST)[0] == "172.17.0.1"
    assert chosen(C1, HOST, 6)[0] == "fd00:17::1"
    assert chosen(C1, SIX) == ["fd00:17::6"]
    assert chosen(SIX, C1) == ["fd00:17::2"]
    assert chosen(BARE, C1) == ["172.17.0.2"]  # no way there, which the trace is to show


def test_nothing_to_choose() -> None:
    assert chosen(C1, BARE) == []
    assert chosen(C1, WEB, 6) == []
    assert chosen(C1, namespace("local", "fe80::9/64")) == []


@pytest.mark.parametrize(("here", "there", "version", "said"), [
    (C1, BARE, None, "bare has no IP address: connect it to a network with `docker network connect NETWORK bare`."),
    (BARE, BARE, None, "Neither bare nor bare has an IP address: connect it to a network"),
    (C1, WEB, 6, "web has no IPv6 address: leave out -6, since web has an IPv4 address."),
    (C1, SIX, 4, "six has no IPv4 address: leave out -4, since six has an IPv6 address."),
    (C1, BARE, 6, "connect it to a network that was created with --ipv6"),
])
def test_no_address_names_the_mend(here: Namespace, there: Namespace, version: int | None, said: str) -> None:
    container = Container("ab", there.name, 7, "running", "none")
    source, target = (Place(n.name, n.name, 1, "", container) for n in (here, there))
    assert said in str(no_address(source, here, target, there, version))


def test_a_namespace_is_no_container() -> None:
    source, target = Place("c1", "c1", 1, ""), Place("netns:blue", "blue", 2, "")
    assert str(no_address(source, C1, target, BARE, None)) == \
        "blue has no IP address: give blue one with `ip address add`."


def test_whose_etc_a_name_is_looked_up_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from tracer.cli.session import _resolve
    from tracer.traffic import resolve

    monkeypatch.setattr(resolve, "resolve", lambda _name, _path, etc, _version: etc)
    container = Container("aa", "c1", 7, "running", "bridge")
    for place, etc in ((Place("host", "host", here(), "/h"), "/etc"), (Place("a", "a", here() + 1, "/a"), "/etc/netns/a"),
                       (Place("c1", "c1", 9, "/c", container), "/proc/7/root/etc")):
        assert _resolve(place, "name", 4) == etc
