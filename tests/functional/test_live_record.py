"""Recorded live traffic, replayed: on a Docker engine, compared byte for byte with what was shown."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.functional.conftest import Dnettrace, Done, program
from tests.functional.engine import Engine
from tracer.topology.netns import in_namespace

Traced = Callable[..., Done]


@pytest.fixture
def traced(engine: Engine, dnettrace: Dnettrace, tmp_path: Path) -> Traced:
    """Runs a command for a while, with traffic beside it: c1 pings c2, asks a closed port of it and an address outside."""
    def call(*command: str) -> Done:
        arguments = ["nsenter", f"--net={engine.host_netns}", *program(), *command, "--duration", "5"]
        with subprocess.Popen(arguments, env=engine.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            begun = time.monotonic()
            while not any(tmp_path.iterdir()) and time.monotonic() < begun + 20 and run.poll() is None:
                time.sleep(0.05)
            time.sleep(1)
            address = engine.docker("inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "c2").strip()
            engine.docker("exec", "c1", "sh", "-c",
                          f"ping -c 3 -i 0.2 {address}; nc -w 1 {address} 81 < /dev/null; ping -c 1 -W 1 203.0.113.1; true")
            with in_namespace(engine.host_netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
                sender.sendto(b"secret", (address, 9))
            out, err = run.communicate(timeout=30)
        return Done(arguments, run.returncode, out, err)

    return call


@pytest.mark.parametrize("options", [(), ("-v",), ("--json",), ("--json", "--drops"), ("--tcp-problems",), ("-c", "3")],
                         ids=" ".join)
def test_a_replay_is_what_was_shown(traced: Traced, dnettrace: Dnettrace, options: tuple[str, ...], tmp_path: Path) -> None:
    path = str(tmp_path / "run.pcapng")
    live = traced("live", "-w", path, *options)
    assert live.returncode == 0, live.stderr
    replayed = dnettrace("replay", path, *options)
    assert live.stdout.count("\n") >= 3
    assert (replayed.stdout, replayed.returncode) == (live.stdout, 0), replayed.stderr
    assert b"secret" not in Path(path).read_bytes()


def rows(dnettrace: Dnettrace, *arguments: str) -> list[dict[str, Any]]:
    done = dnettrace("replay", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return [row for row in map(json.loads, done.stdout.splitlines()) if row["type"] == "journey"]


def test_a_part_of_it(traced: Traced, dnettrace: Dnettrace, tmp_path: Path) -> None:
    path = str(tmp_path / "run.pcapng")
    traced("live", "-w", path)
    everything = rows(dnettrace, path)
    main = [row for row in everything if row["kind"] not in ("copy", "part")]
    echo = rows(dnettrace, path, "--filter", "icmp and dst host 172.17.0.3")
    assert echo and [row["id"] for row in echo] == [row["id"] for row in main if row["packet"]["proto"] == "icmp"
                                                    and row["packet"]["dst"] == "172.17.0.3"]
    assert [row["id"] for row in rows(dnettrace, path, "--journey", str(main[1]["id"]))] == [main[1]["id"]]
    assert len([row for row in rows(dnettrace, path, "-c", "2") if row["kind"] not in ("copy", "part")]) == 2
    assert not rows(dnettrace, path, "--container", "c9")
    said = dnettrace("info", path).stdout
    assert "live" in said and "c1" in said
    wrong = dnettrace("replay", path, "--filter", "nonsense (")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and not wrong.stdout


def test_record_tells_nothing_and_replay_everything(traced: Traced, dnettrace: Dnettrace, tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    done = traced("record", "-w", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "none lost" in done.stdout and str(path) in done.stdout
    assert path.stat().st_mode & 0o777 == 0o600
    echo = [row for row in rows(dnettrace, str(path), "--filter", "icmp[icmptype] = icmp-echo and dst host 172.17.0.3")
            if row["kind"] not in ("copy", "part") and row["source"] == "c1"]  # others have such addresses too
    assert [row["end"]["result"] for row in echo] == ["delivered"] * 3
    assert [(row["source"], row["target"], row["lost_events"]) for row in echo] == [("c1", "c2", 0)] * 3
    assert echo[-1]["complete"]  # at first, on a busy machine, netfilter may not be watched in c2 yet
    assert len({hop["stage"] for hop in echo[0]["hops"]}) > 4
    assert b"secret" not in path.read_bytes()
    again = traced("record", "-w", str(path))
    assert (again.returncode, again.stdout) == (2, "") and "exists" in again.stderr


def test_payload_when_asked_for(traced: Traced, tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    assert traced("record", "-w", str(path), "--snaplen", "200", "udp").returncode == 0
    assert b"secret" in path.read_bytes()


def test_rotation(traced: Traced, dnettrace: Dnettrace, tmp_path: Path) -> None:
    done = traced("record", "-w", str(tmp_path / "run.pcapng"), "--rotate", "1s", "--keep", "2")
    assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 2 and files[0] > "run-0002.pcapng" and files[1] in done.stdout
    for name in files:
        said = dnettrace("info", str(tmp_path / name)).stdout
        assert "whole         yes" in said and "c1" in said
    assert traced("record", "-w", str(tmp_path / "run.pcapng"), "--rotate", "1s").returncode == 2
    for wrong in ("1m", "0s", "fast"):
        assert traced("record", "-w", "x", "--rotate", wrong).returncode == 2


def test_records_to_its_end_when_interrupted(engine: Engine, dnettrace: Dnettrace, tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    with subprocess.Popen(["nsenter", f"--net={engine.host_netns}", *program(), "record", "-w", str(path)], env=engine.env(),
                          stdout=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        run.terminate()
        out = run.communicate(timeout=20)[0]
    assert run.returncode == 0 and "none lost" in out
    assert "whole         yes" in dnettrace("info", str(path)).stdout
