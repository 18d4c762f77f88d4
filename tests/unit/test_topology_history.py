"""The network as it was at a time: whose an inode was, and what a device led to."""

from __future__ import annotations

import itertools
from dataclasses import replace

from tracer.model.topology import Ended, FormerLink, Link, LinkKey, Namespace, Topology

HOST, INODE = 1, 2


def port(index: int, ifindex: int, master: int | None = 9) -> Link:
    return Link(index, f"v{index}", "veth", None, 1500, True, False, master, LinkKey(INODE, ifindex))


def topology() -> Topology:
    """`first` from 10 to 20, `second` from 30 on, both with the inode; each has a port of the host."""
    host = Namespace(HOST, "host", "/h", {4: port(4, 3)})
    second = Namespace(INODE, "second", "/2", {3: replace(port(3, 4), name="eth0")})
    first = Namespace(INODE, "first", "/1", {2: replace(port(2, 3), name="eth0")})
    return Topology(HOST, {HOST: host, INODE: second}, {HOST: "host", INODE: "second"},
                    ended=(Ended(INODE, "first", first, 10, 20, reused=True),),
                    former=(FormerLink(port(3, 2), 18, gone=False), FormerLink(port(3, 2, None), 19)), since={INODE: 30})


def test_an_inode_is_whose_it_was() -> None:
    whole = topology()
    assert [whole.at(when).node(INODE) for when in (5, 10, 20, 21, 29, 30, 99)] == [
        "netns:2", "first", "first", "netns:2", "netns:2", "second", "second"]
    assert {when: list(whole.at(when).namespaces[INODE].links) for when in (15, 40)} == {15: [2], 40: [3]}


def test_a_device_is_what_it_was() -> None:
    whole = topology()
    assert [whole.at(15).link(HOST, 3), whole.at(19).link(HOST, 3), whole.at(20).link(HOST, 3)] == [
        port(3, 2), port(3, 2, None), None]
    assert whole.at(15).peer(HOST, 3) == ("first", "eth0")
    assert whole.at(40).peer(HOST, 4) == ("second", "eth0")


def test_nothing_changes_between_the_changes() -> None:
    whole = topology()
    times = [0, *whole.changes(), 100]
    for begin, end in itertools.pairwise(times):
        assert whole.at(begin) == whole.at(end - 1)
    plain = Topology(HOST, {})
    assert plain.at(7) is plain
