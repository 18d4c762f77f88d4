"""`dnettrace export`, `diff` and the samples: as a person uses them, on recorded runs."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_dependencies import CHECKOUT
from tests.unit.trace import items, live_items, write
from tracer.cli.main import main
from tracer.cli.samples import SAMPLES
from tracer.errors import ExitStatus
from tracer.model.probes import Batch
from tracer.model.run import Begin

BLOCKED = ("bcc", "numpy", "pyroute2", "scapy", "tracer.kernel", "tracer.topology", "tracer.traffic")
Out = pytest.CaptureFixture[str]


def said(capsys: Out, *arguments: str, status: int = 0) -> str:
    assert main(list(arguments)) == status, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.fixture(params=["ping", "live"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    run = items("outside") if request.param == "ping" else live_items("outside")
    return str(write(tmp_path / "run.pcapng", run))


def test_jsonl_is_what_replay_says(path: str, capsys: Out) -> None:
    assert said(capsys, "export", path, "--to", "jsonl") == said(capsys, "replay", path, "--json")


def test_a_row_a_hop(path: str, capsys: Out) -> None:
    rows = list(csv.DictReader(io.StringIO(said(capsys, "export", path, "--to", "csv"))))
    journeys = journeys_of(capsys, path)
    assert [(row["journey"], row["node"], row["stage"], row["t_ns"]) for row in rows] == [
        (str(one["id"]), hop["node"], hop["stage"], str(hop["t_ns"])) for one in journeys for hop in one["hops"]]
    assert any("src 172.17.0.2 > 198.51.100.2" in row["rewrite"] for row in rows)


def test_a_cell_is_no_formula_and_no_escape(tmp_path: Path, capsys: Out) -> None:
    begin, *rest = items()
    assert isinstance(begin, Begin)
    names = {number: "=1+1" if name == "c1" else "\x1b[2J" for number, name in begin.topology.names.items()}
    namespaces = {key: replace(one, name=names.get(key, one.name)) for key, one in begin.topology.namespaces.items()}
    topology = replace(begin.topology, names=names, namespaces=namespaces, containers=())
    text = said(capsys, "export", str(write(tmp_path / "run", [replace(begin, topology=topology), *rest])), "--to", "csv")
    assert "'=1+1" in text and ",=1+1" not in text and "\x1b" not in text


def test_a_sequence_diagram(path: str, capsys: Out) -> None:
    request = next(row["id"] for row in map(json.loads, said(capsys, "replay", path, "--json").splitlines())
                   if row["type"] == "journey" and row["packet"]["icmp_type"] == 8)
    text = said(capsys, "export", path, "--to", "mermaid", "--journey", str(request))
    lines = text.splitlines()
    assert lines[0] == "sequenceDiagram" and "icmp 172.17.0.2 to 203.0.113.1" in lines[1]
    assert any("source 172.17.0.2 becomes 198.51.100.2" in line for line in lines)
    assert lines[-1].endswith("delivered")
    known = {line.split()[1] for line in lines if line.strip().startswith("participant")}
    assert {line.split()[0].split("->>")[0] for line in lines if "->>" in line} <= known
    assert "no such journey" in err(capsys, "export", path, "--to", "mermaid", "--journey", "999")


def test_a_sequence_diagram_of_a_packet_that_waits(tmp_path: Path, capsys: Out) -> None:
    path = str(write(tmp_path / "run.pcapng", items("probed_waiting")))
    assert "Note over p0: waits: the MAC of 172.17.0.3 is not known" in said(capsys, "export", path, "--to", "mermaid")


def err(capsys: Out, *arguments: str) -> str:
    assert main(list(arguments)) == ExitStatus.ERROR
    out, said = capsys.readouterr()
    assert not out and said.count("\n") == 1
    return said


def test_each_packet_once(path: str, tmp_path: Path, capsys: Out) -> None:
    for options in (), ("--at", "c1/eth0 egress"):
        target = tmp_path / f"plain{len(options)}"
        said(capsys, "export", path, "--to", "plain-pcap", "-o", str(target), *options)
        data = target.read_bytes()
        assert struct.unpack_from("=I", data) == (0xA1B23C4D,)
        at, frames = 24, []
        while at < len(data):
            _seconds, ns, captured, original = struct.unpack_from("=IIII", data, at)
            assert ns < 10**9 and captured <= original
            frames.append(data[at + 16:at + 16 + captured])
            at += 16 + captured
        requests = [frame for frame in frames if frame[12:14] == b"\x08\0" and frame[34] == 8]
        assert len(requests) == 1 and requests[0][26:30] == bytes([172, 17, 0, 2])
        assert target.stat().st_mode & 0o777 == 0o600
    none = str(tmp_path / "none")
    assert "has no place 'c9'" in err(capsys, "export", path, "--to", "plain-pcap", "--at", "c9", "-o", none)
    assert not (tmp_path / "none").exists()
    assert "exists" in err(capsys, "export", path, "--to", "csv", "-o", str(target))


def test_a_damaged_file_gives_what_is_whole(path: str, tmp_path: Path, capsys: Out) -> None:
    data = Path(path).read_bytes()
    for cut in range(0, len(data), 997):
        (tmp_path / "cut").write_bytes(data[:cut] + b"\xff" * 64)
        for kind in "plain-pcap", "csv", "mermaid":
            assert main(["export", str(tmp_path / "cut"), "--to", kind, "-o", str(tmp_path / "out"), "--force"]) in (0, 2)
    capsys.readouterr()


def test_no_difference(path: str, capsys: Out) -> None:
    assert "no difference" in said(capsys, "diff", path, path)


def test_the_first_difference_in_route_rule_and_end(capsys: Out) -> None:
    text = said(capsys, "diff", "sample:masquerade", "sample:firewall", status=1)
    first, one, other = text.splitlines()[:3]
    assert first == "request 1: icmp 172.17.0.2 → 203.0.113.1: the first 8 hops are alike, up to host eth0 route"
    assert "host docker0 forward" in one and "drop" not in one
    assert "-A DOCKER-USER -d 203.0.113.1/32 -i docker0 -j DROP → drop" in other
    text = said(capsys, "diff", "sample:ping", "sample:isolated", status=1)
    assert "A  c1 eth0 route: 172.17.0.0/16 dev eth0" in text and "B  c1 eth0 route: default via 172.17.0.1" in text
    assert "B  not there" in text


def test_samples(capsys: Out) -> None:
    listed = said(capsys, "replay", "sample:")
    for name, about in SAMPLES.items():
        assert f"sample:{name}" in listed and about in listed
        dropped = about.startswith("dropped")
        text = said(capsys, "replay", f"sample:{name}", status=1 if dropped else 0)
        assert ("✗ dropped" in text) == dropped and "docker0" in text
        assert "yes" in said(capsys, "info", f"sample:{name}").splitlines()[-1]
    assert "There is no sample 'x'" in err(capsys, "replay", "sample:x")


@pytest.mark.parametrize("arguments", [
    ["replay", "sample:masquerade", "--filter", "icmp", "--json"], ["export", "sample:published", "--to", "csv"],
    ["export", "sample:published", "--to", "mermaid"], ["export", "sample:ping", "--to", "plain-pcap", "-o", "/dev/null",
                                                        "--force"], ["diff", "sample:ping", "sample:ping"]], ids=" ".join)
def test_neither_root_nor_the_tracer_is_needed(arguments: list[str]) -> None:
    code = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
from tracer.cli.main import main
sys.exit(main({arguments!r}))
"""
    powerless = ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []
    done = subprocess.run([*powerless, sys.executable, "-c", code], cwd=CHECKOUT, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_live_is_replayed(tmp_path: Path, capsys: Out) -> None:
    """Each choice leaves out what it says, and no more."""
    path = str(write(tmp_path / "run.pcapng", live_items("isolated")))
    everything = journeys_of(capsys, path)
    assert everything and any(isinstance(item, Batch) for item in live_items("isolated"))
    dropped = journeys_of(capsys, path, "--drops")
    assert dropped == [one for one in everything if one["end"]["result"] == "dropped"]
    assert journeys_of(capsys, path, "--filter", "icmp") == [one for one in everything
                                                          if one["packet"]["proto"] == "icmp"]
    assert journeys_of(capsys, path, "-c", "1") == everything[:1]
    assert not journeys_of(capsys, path, "--tcp-problems")
    assert journeys_of(capsys, path, "--speed", "10") == everything


def journeys_of(capsys: Out, *arguments: str) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, said(capsys, "replay", *arguments, "--json").splitlines())
            if row["type"] == "journey"]
