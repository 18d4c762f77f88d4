"""A large TCP packet (GSO) that a device has cut: one journey with its parts."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from ipaddress import ip_address

import pytest

from tests.functional.engine import Engine
from tracer.journey.assemble import Assembler
from tracer.kernel.probes import Probes
from tracer.model.journey import Result
from tracer.model.selection import Selection
from tracer.topology.host import Host
from tracer.topology.netns import identify, in_namespace

TOKEN = 41024 // 64 * 64
SIOCETHTOOL, ETHTOOL_STSO = 0x8946, 0x1F  # linux/sockios.h, linux/ethtool.h


def offload(path: str, device: str, on: bool) -> None:
    """TCP segmentation offload, as `ethtool -K DEVICE tso on|off` sets it."""
    value = struct.pack("II", ETHTOOL_STSO, on)

    def ask() -> None:
        with socket.socket() as one:
            buffer = bytearray(value)
            address = (ctypes.c_char * len(buffer)).from_buffer(buffer)
            fcntl.ioctl(one, SIOCETHTOOL, struct.pack("16sP", device.encode(), ctypes.addressof(address)))

    in_namespace(path, ask)


def test_segments_are_parts_of_one_journey(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 kB from c1 to the outside, in one write: the uplink, without offload, cuts what came through the bridge whole."""
    for name, value in engine.env().items():
        monkeypatch.setenv(name, value)
    source, goal, port = ip_address("172.17.0.2"), ip_address("203.0.113.1"), 7777
    taken = in_namespace(engine.wan_netns, lambda: socket.create_server((str(goal), port)))
    sender = in_namespace(f"/proc/{engine.pid('c1')}/ns/net", socket.socket)
    offload(engine.host_netns, "eth0", False)
    try:
        with taken, sender:
            sender.bind((str(source), TOKEN + 1))
            sender.connect((str(goal), port))
            accepted, _peer = taken.accept()
            host = in_namespace(engine.host_netns, lambda: Host.here(engine.env()))
            host.find("c1")
            topology = host.topology([identify(engine.wan_netns)])
            selection = Selection(4, "tcp", TOKEN, (source, goal), goal, port, source)
            with accepted, Probes(selection) as probes:
                for namespace in topology.namespaces.values():
                    probes.watch(namespace)
                probes.arm()
                assembler = Assembler(selection, topology, lambda: probes.machine, None)
                sender.sendall(b"x" * 12000)
                received = 0
                while received < 12000:
                    received += len(accepted.recv(1 << 16))
                for _ in range(3):
                    assembler.feed(probes.read(50))
                journeys = assembler.rest()
    finally:
        offload(engine.host_netns, "eth0", True)
    wholes = [j for j in journeys if j.kind == "ack" and j.packet.length > 100]
    parts = [j for j in journeys if j.kind == "part"]
    assert any(j.packet.length > 1500 for j in wholes) and parts
    assert {j.parent for j in parts} <= {j.id for j in wholes}
    assert all(j.hops[0].node == "c1" for j in wholes)
    assert {j.end.result for j in (*wholes, *parts)} == {Result.DELIVERED}
