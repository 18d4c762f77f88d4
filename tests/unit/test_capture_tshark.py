"""Trace files in other programs: tshark's fields and display filters, tcpdump, scapy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.functional.engine import cache
from tests.unit.recording import load
from tests.unit.trace import every_kind, items, write
from tracer.model.layout import Event, Place
from tracer.model.probes import Batch


def reader(name: str) -> list[str]:
    """The program, of the system or of those that scripts/test unpacks."""
    if found := shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin"):
        return [found]
    unpacked = cache() / "readers" / "usr"
    program = next((path for path in (unpacked / "bin" / name, unpacked / "sbin" / name) if path.exists()), None)
    if program is None:
        missing(f"no {name} on PATH and none unpacked in the cache; scripts/test unpacks one on Debian and Ubuntu")
    libraries = ":".join(map(str, unpacked.glob("lib/*-linux-*")))
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(program)]


@pytest.fixture(scope="session")
def tshark() -> list[str]:
    return reader("tshark")


def table(tshark: list[str], path: Path, *fields: str, only: str = "") -> list[list[str]]:
    asked = [argument for field in fields for argument in ("-e", field)]
    done = subprocess.run([*tshark, "-r", str(path), "-Y", only, "-T", "fields", "-E", "separator=|", *asked], text=True,
                          capture_output=True, check=True)
    complaints = [line for line in done.stderr.splitlines() if not re.search("Running as user|could be dangerous|lua", line)]
    assert not complaints
    return [line.split("|") for line in done.stdout.splitlines()]


def events(name: str) -> list[Event]:
    return [event for item in items(name) if isinstance(item, Batch) for event in item.events if event.place != Place.ROUTE]


@pytest.fixture
def one_bridge(tmp_path: Path) -> Path:
    return write(tmp_path / "one_bridge.pcapng", every_kind())


def test_each_event_with_a_packet_is_a_frame_and_nothing_else_is(tshark: list[str], one_bridge: Path) -> None:
    rows = table(tshark, one_bridge, "frame.number", "frame.time_epoch")
    offset = every_kind()[0].machine.clock_offset_ns  # type: ignore[union-attr]
    expected = [event.time + offset for event in events("one_bridge")]
    assert [int(row[0]) for row in rows] == list(range(1, len(expected) + 1))
    assert [row[1] for row in rows] == [f"{ns // 10**9}.{ns % 10**9:09}" for ns in expected]


def test_places_journeys_and_directions(tshark: list[str], one_bridge: Path) -> None:
    rows = table(tshark, one_bridge, "frame.interface_name", "frame.packet_flags_direction", only="frame.packet_id == 1")
    found = [(re.sub("^veth[0-9a-f]+", "veth", name), int(flag, 16) if flag else 0) for name, flag in rows]
    steady = [place for place, before in zip(found, [None, *found], strict=False) if place != before]
    assert steady == [
        ("c1/eth0 output", 0), ("c1/eth0 postrouting", 0), ("c1/eth0 egress", 2), ("veth ingress", 1),
        ("docker0 prerouting", 0), ("docker0 forward", 0), ("docker0 postrouting", 0), ("veth egress", 2),
        ("c2/eth0 ingress", 1), ("c2/eth0 prerouting", 0), ("c2/eth0 input", 0), ("c2/eth0 end", 0)]


@pytest.mark.parametrize(("only", "number"), [
    ('frame.interface_name == "docker0 forward"', 8),
    ("arp", 12),
    ("icmp.seq == 2 && frame.packet_id == 6", 16),
    ("icmp && eth.src == 02:42:ac:11:00:02 && frame.packet_flags_direction == 2", 4),
    ("_ws.malformed", 0),
])
def test_display_filters(tshark: list[str], one_bridge: Path, only: str, number: int) -> None:
    assert len(table(tshark, one_bridge, "frame.number", only=only)) == number


def test_drops_have_comments(tshark: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "isolated.pcapng", items("isolated"))
    ((name, comment),) = table(tshark, path, "frame.interface_name", "frame.comment", only="icmp && frame.comment")
    assert name.endswith(" drop")
    assert comment.startswith("drop reason: NETFILTER_DROP,kernel stack: ")
    assert "nft_do_chain < " in comment


def test_rewrites_have_comments(tshark: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "published.pcapng", items("published"))
    rows = table(tshark, path, "frame.interface_name", "frame.comment", only='frame.comment contains "rewritten"')
    assert rows == [
        ["eth0 prerouting", "destination rewritten: 198.51.100.2 port 8080 → 172.17.0.3 port 80"],
        ["docker0 postrouting", "source rewritten: 172.17.0.3 port 80 → 198.51.100.2 port 8080"]]
    path = write(tmp_path / "outside.pcapng", items("outside"))
    rows = table(tshark, path, "frame.comment", only='frame.comment contains "rewritten"')
    assert rows == [["source rewritten: 172.17.0.2 → 198.51.100.2"], ["destination rewritten: 198.51.100.2 → 172.17.0.2"]]


def test_rules_have_comments(tshark: list[str], tmp_path: Path) -> None:
    recording = load("rules_isolated")
    run = [replace(item, traces=tuple(recording.traces)) if isinstance(item, Batch) else item
           for item in items("rules_isolated")]
    path = write(tmp_path / "rules.pcapng", run)
    said = table(tshark, path, "frame.interface_name", "frame.comment", only='frame.comment contains "rules of ip filter"')
    assert [name for name, _comment in said] == ["docker0 forward"]
    assert said[0][1].startswith("rules of ip filter: -A FORWARD -j DOCKER-USER: jump → -A DOCKER-USER -j RETURN: return → ")
    assert re.search(r" → -A DOCKER-ISOLATION-STAGE-2 -o br-\w+ -j DROP: drop$", said[0][1])


def test_ipv6_and_translated_packets(tshark: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "run.pcapng", items("one_bridge_v6"))
    assert table(tshark, path, "ipv6.dst", only="icmpv6.type == 128")[0] == ["fd00:17::2"]
    path = write(tmp_path / "published.pcapng", items("published"))
    rows = table(tshark, path, "ip.dst", "tcp.dstport", only="tcp.flags.syn == 1 && tcp.flags.ack == 0")
    assert (rows[0], rows[-1]) == (["198.51.100.2", "8080"], ["172.17.0.3", "80"])


def test_tcpdump(one_bridge: Path) -> None:
    # else it gives up root for a user who may not read pytest's folders, or is not there
    done = subprocess.run([*reader("tcpdump"), "-Z", "root", "-nr", "-", "--nano"], stdin=one_bridge.open("rb"),
                          text=True, capture_output=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(events("one_bridge"))
    assert "IP 172.17.0.2 > 172.17.0.3: ICMP echo request" in lines[0]


def test_scapy(one_bridge: Path) -> None:
    from scapy.layers.inet import ICMP
    from scapy.utils import rdpcap
    frames = rdpcap(str(one_bridge))
    assert len(frames) == len(events("one_bridge"))
    assert frames[0][ICMP].seq == 1
