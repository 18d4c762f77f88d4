"""The network as it was at a time, and what tells one namespace from the next."""

from __future__ import annotations

import itertools
import socket
from dataclasses import replace

from tracer.model.topology import FormerLink, Link, LinkKey, Namespace, Topology, inode, netns_number
from tracer.topology.watcher import _Announced

HOST, INODE = 1, 4026532001
FIRST, SECOND, THIRD = (netns_number(cookie, INODE) for cookie in (7, 8, 9))


def port(index: int, netns: int, ifindex: int, master: int | None = 9) -> Link:
    return Link(index, f"v{index}", "veth", None, 1500, True, False, master, LinkKey(netns, ifindex))


def topology() -> Topology:
    """`first` has ended, `second` has its inode; each has a port of the host."""
    host = Namespace(HOST, "host", "/h", {4: port(4, SECOND, 3)})
    second = Namespace(SECOND, "second", "/2", {3: replace(port(3, HOST, 4), name="eth0")})
    first = Namespace(FIRST, "first", "/1", {2: replace(port(2, HOST, 3), name="eth0")})
    return Topology(HOST, {HOST: host, FIRST: first, SECOND: second}, {HOST: "host", FIRST: "first", SECOND: "second"},
                    former=(FormerLink(port(3, FIRST, 2), 18, gone=False), FormerLink(port(3, FIRST, 2, None), 19)))


def test_an_inode_is_not_what_a_namespace_is_known_by() -> None:
    whole = topology()
    assert [whole.node(number) for number in (FIRST, SECOND, THIRD)] == ["first", "second", f"netns:{INODE}"]
    assert {inode(number) for number in (FIRST, SECOND, THIRD)} == {INODE}
    assert netns_number(1 << 32 | 7, INODE) == FIRST


def test_a_device_is_what_it_was() -> None:
    whole = topology()
    assert [whole.at(15).link(HOST, 3), whole.at(19).link(HOST, 3), whole.at(20).link(HOST, 3)] == [
        port(3, FIRST, 2), port(3, FIRST, 2, None), None]
    assert whole.at(15).peer(HOST, 3) == ("first", "eth0")
    assert whole.at(40).peer(HOST, 4) == ("second", "eth0")


def test_nothing_changes_between_the_changes() -> None:
    whole = topology()
    times = [0, *whole.changes(), 100]
    for begin, end in itertools.pairwise(times):
        assert whole.at(begin) == whole.at(end - 1)
    plain = Topology(HOST, {})
    assert plain.at(7) is plain


def test_a_device_that_comes_back_is_not_gone() -> None:
    announced = _Announced()
    for ends, message in ((False, b"here"), (True, b"gone"), (False, b"back")):
        announced.add(ends, socket.AF_UNSPEC, 7, message)
    assert (announced.told, announced.gone) == ({7: b"back"}, {})
    announced.add(True, socket.AF_UNSPEC, 7, b"gone again")
    assert (announced.told, announced.gone, announced.devices) == ({}, {7: b"back"}, {7})
