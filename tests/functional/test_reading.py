"""Batches of real packets: numpy's records and the objects made of them; and more packets than are read in time."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from tests.functional.engine import NETNS, delete_namespace
from tracer.kernel.probes import Probes
from tracer.model.layout import TUPLES, Event, Place
from tracer.model.selection import Selection
from tracer.topology import netns
from tracer.topology.snapshot import read_namespace

A, B = (f"dnt{os.getpid()}-shed-{name}" for name in "ab")
ADDRESSES = ip_address("10.9.0.1"), ip_address("10.9.0.2")
ETH_P_IP = 0x0800
TOKEN = 40000 // 64 * 64
TO_PORT_9 = Selection(4, "udp", TOKEN, ADDRESSES, ADDRESSES[1], 9, ADDRESSES[0])


@pytest.fixture
def pair() -> Iterator[None]:
    """Two namespaces with a veth pair."""
    try:
        for name in (A, B):
            subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-n", A, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", B], check=True)
        for name, address in zip((A, B), ADDRESSES, strict=True):
            subprocess.run(["ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0"], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "eth0", "up"], check=True)
        yield
    finally:
        for name in (A, B):
            delete_namespace(name)


@contextmanager
def flood() -> Iterator[None]:
    """Numbered datagrams, as fast as one thread sends them."""
    sender, sink = (netns.in_namespace(str(NETNS / name), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    for name in (A, B))
    sink.bind((str(ADDRESSES[1]), 9))
    sender.bind((str(ADDRESSES[0]), TOKEN))
    sender.connect((str(ADDRESSES[1]), 9))
    over = threading.Event()

    def send() -> None:
        number = 0
        while not over.is_set():
            number += 1
            sender.send(number.to_bytes(8, "little"))

    thread = threading.Thread(target=send)
    with sender, sink:
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def run(shed: bool, ring_bytes: int, pause: float) -> tuple[list[Event], int, float]:
    """What a reader that pauses has after a second: (events, how many were lost, the least share)."""
    events: list[Event] = []
    lost, share = 0, 1.0
    with Probes(TO_PORT_9, rules=False, ring_bytes=ring_bytes, shed=shed) as probes:
        probes.read(0)
        with flood():
            end = time.monotonic() + 1
            while time.monotonic() < end:
                time.sleep(pause)
                batch = probes.read(0)
                events += batch.events
                lost += batch.lost
                assert sum(batch.lost_by.values()) == batch.lost
                share = min(share, batch.share)
        while more := probes.read(0).events:
            events += more
    return events, lost, share


@pytest.mark.usefixtures("pair")
def test_objects_are_made_of_any_choice_of_records() -> None:
    with Probes(TO_PORT_9, rules=False) as probes:
        probes.watch(read_namespace(str(NETNS / B), "b", {}))
        probes.arm()
        with flood():
            time.sleep(0.01)
            records, batch = probes.read_records(1000)
        assert batch.events == []
        events = probes.events(records)
        assert len(events) == len(records) > 100
        for name in ("time", "journey", "netns", "place", "hook", "length"):
            assert [getattr(event, name) for event in events] == records[name].tolist()
        hooks = probes.events(records[records["place"] == Place.HOOK])
        assert hooks == [event for event in events if event.place == Place.HOOK]
        assert {len(event.tuples) for event in hooks} == {TUPLES.size} and not any(event.stack for event in hooks)
        ended = next(i for i, event in enumerate(events) if event.place == Place.DROP and event.protocol == ETH_P_IP)
        assert probes.events(records[ended]) == [events[ended]]
        assert any(name.startswith("__netif_receive_skb") for name in events[ended].stack), events[ended].stack
        assert events[ended].packet[:events[ended].captured][12:20] == b"".join(a.packed for a in ADDRESSES)


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(("ring_bytes", "pause"), [(1 << 16, 0.005), (1 << 22, 0.1)])
def test_whole_journeys_are_shed_and_no_hop_is_lost(ring_bytes: int, pause: float) -> None:
    sender = netns.identify(str(NETNS / A))
    events, lost, share = run(True, ring_bytes, pause)
    assert lost == 0
    assert 0 < share < 1
    places = defaultdict(set)
    for event in events:
        places[event.journey].add((event.place, event.netns == sender))
    assert len(places) > 100
    whole = {(Place.QUEUE, True), (Place.RECEIVE, False)}
    # one that was under way when the brake was released may begin half-way
    assert sum(not whole <= seen for seen in places.values()) <= 2 + len(places) // 100


@pytest.mark.usefixtures("pair")
def test_without_shedding_hops_are_lost_and_counted() -> None:
    _events, lost, share = run(False, 1 << 16, 0.005)
    assert lost > 100
    assert share == 1.0
