"""What a machine is before anything has loaded nf_tables, which the lab does: this file comes first."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functional.conftest import program
from tests.functional.pinging import answers

NETNS, HERE, THERE = "dnettrace-late", "10.99.0.1", "10.99.0.2"
PATIENCE_S = 240


def run(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True)


@pytest.fixture
def neighbor() -> Iterator[None]:
    """A namespace behind a veth pair of this host."""
    run(f"ip netns add {NETNS}")
    try:
        run(f"ip link add late type veth peer name eth0 netns {NETNS}", f"ip addr add {HERE}/24 dev late",
            "ip link set late up", f"ip -n {NETNS} addr add {THERE}/24 dev eth0", f"ip -n {NETNS} link set eth0 up")
        yield
    finally:
        run(f"ip netns del {NETNS}")


@pytest.mark.usefixtures("neighbor")
def test_nf_tables_that_is_loaded_during_a_run(tmp_path: Path) -> None:
    if Path("/sys/module/nf_tables").exists():
        pytest.skip("nf_tables is loaded already")
    path = tmp_path / "said"
    with path.open("w") as out:
        live = subprocess.Popen([*program(), "live", "icmp", "--json"], stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not path.read_text():
            assert live.poll() is None and time.monotonic() < deadline, path.read_text()
            time.sleep(1)
        run("modprobe nf_tables")
        stages: set[str] = set()
        while "input" not in stages and time.monotonic() < deadline:
            assert answers(f"/run/netns/{NETNS}", HERE)
            time.sleep(1)
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            stages = {hop["stage"] for row in rows for hop in row.get("hops", ())}
        assert {"prerouting", "input", "output", "postrouting"} <= stages, path.read_text()
    finally:
        live.terminate()
        live.wait(60)
