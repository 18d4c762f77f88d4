"""The picture of a recorded network with one of each kind, and a part of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.topo import draw, network, port_of, relinked
from tracer.map.picture import Choice, known
from tracer.model.picture import Alone, Bridge, Picture


def bridge(picture: Picture, name: str) -> Bridge:
    return next(b for b in picture.bridges if name in (b.link.name, b.network.name if b.network else ""))


def guests(one: Bridge) -> list[str]:
    return [" + ".join(port.guest.containers) or port.guest.node for port in one.ports if port.guest]


def test_each_bridge_with_what_hangs_on_it() -> None:
    picture = draw()
    assert {b.network.name if b.network else b.link.name: guests(b) for b in picture.bridges} == {
        "bridge": ["c1", "c2"], "web": ["c3 + c4"], "data": ["c3 + c4"], "six": ["c8"], "quiet": ["c10"],
        "br-own": ["test-own"]}
    docker0 = bridge(picture, "docker0")
    assert [str(i) for i in docker0.link.addresses][:2] == ["172.17.0.1/16", "fd00:17::1/64"]
    (published,) = {(p.host_port, p.container_port) for p in docker0.ports[1].guest.published}  # type: ignore[union-attr]
    assert published == (8080, 80)


def test_veth_pairs_name_both_ends() -> None:
    for port in bridge(draw(), "docker0").ports:
        assert port.guest
        assert port.guest.link
        assert port.guest.link.peer
        assert port.link.peer
        assert (port.guest.link.peer.ifindex, port.link.peer.ifindex) == (port.link.ifindex, port.guest.link.ifindex)


def test_what_has_no_bridge_is_told_as_what_it_is() -> None:
    kinds = {one.name: one.kind for one in draw().alone}
    assert kinds == {"c5": "host", "c6": "none", "c7": "macvlan", "c9": "stopped"}
    c7 = next(one for one in draw().alone if one.name == "c7")
    assert c7.sentence.startswith("macvlan on eth0: ")
    assert [link.name for link in c7.links] == ["eth0"]


def test_the_way_out() -> None:
    (uplink,) = draw().uplinks
    assert uplink.link.name == "eth0"
    assert [str(g) for g in uplink.gateways] == ["198.51.100.1", "2001:db8::1"]
    assert uplink.guest
    assert uplink.guest.node == "test-wan"


@pytest.mark.parametrize(("choice", "bridges", "alone"), [
    (Choice("web"), {"web": ["c3 + c4"]}, []),
    (Choice("br-own"), {"br-own": ["test-own"]}, []),
    (Choice("lan"), {}, ["c7"]),
    (Choice(container="c1"), {"bridge": ["c1"]}, []),
    (Choice(container="c4"), {"web": ["c3 + c4"], "data": ["c3 + c4"]}, []),
    (Choice(container="c9"), {}, ["c9"]),
    (Choice("web", "c3"), {"web": ["c3 + c4"]}, []),
    (Choice("web", "c1"), {}, []),
])
def test_a_part(choice: Choice, bridges: dict[str, list[str]], alone: list[str]) -> None:
    picture = draw(choice)
    assert {b.network.name if b.network else b.link.name: guests(b) for b in picture.bridges} == bridges
    assert [one.name for one in picture.alone] == alone
    assert known(network().topology, choice)[0]


def test_a_part_says_how_much_is_left_out() -> None:
    (docker0,) = draw(Choice(container="c2")).bridges
    assert (docker0.hidden, docker0.learned) == (1, 2)


def test_names_that_are_not_there() -> None:
    assert known(network().topology, Choice("nix")) == (
        False, ["br-own", "bridge", "data", "host", "lan", "none", "quiet", "six", "web"])
    there, names = known(network().topology, Choice(container="c99"))
    assert not there
    assert {"c1", "c5", "c9", "test-own"} <= set(names)


def test_a_veth_on_no_bridge() -> None:
    port = port_of("c1")
    topology = relinked("host", port.name, master=None, port=None)
    assert Alone(port.name, "unbridged", "leads to eth0 of c1, but is on no bridge and has no route: a dead end",
                 (replace(port, master=None, port=None),)) in draw(topology=topology).alone


def test_a_container_that_was_not_read() -> None:
    whole = network().topology
    inode = next(n.netns for n in whole.namespaces.values() if whole.node(n.netns) == "c1")
    topology = replace(whole, namespaces={n: s for n, s in whole.namespaces.items() if n != inode})
    port = bridge(draw(topology=topology), "docker0").ports[-1]
    assert port.guest
    assert (port.guest.node, port.guest.link) == ("c1", None)
    assert "c1" in " ".join(draw(topology=topology).unchecked)
