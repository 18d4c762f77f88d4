"""What a machine is before anything has loaded nf_tables, which the lab does: this file comes first. Linux before 6.4 has
no netfilter links."""

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
    run(f"iptables-legacy -A INPUT -p icmp -s {THERE} -j ACCEPT")
    path = tmp_path / "said"
    with path.open("w") as out:
        live = subprocess.Popen([*program(), "live", "icmp", "--json"], stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not path.read_text():
            assert live.poll() is None and time.monotonic() < deadline, path.read_text()
            time.sleep(1)
        seen(path, "input", deadline)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if "nf_hook_slow" in rows[0]["probes"]["attached"]:  # where nothing is registered, there is no hook to see
            hops = [hop for row in rows for hop in row.get("hops", ())]
            assert [table["table"] for hop in hops if hop["stage"] == "input" for table in hop["tables"]][:1] == ["filter"]
            assert not any(hop["stage"] == "prerouting" for hop in hops)
        run("modprobe nf_tables")
        seen(path, "prerouting", deadline)
    finally:
        live.terminate()
        live.wait(60)
        run("iptables-legacy -F INPUT")


def seen(path: Path, stage: str, deadline: float) -> None:
    """A packet that the run told of passed this hook of the host."""
    stages: set[str] = set()
    while stage not in stages:
        assert time.monotonic() < deadline, path.read_text()
        assert answers(f"/run/netns/{NETNS}", HERE)
        time.sleep(1)
        stages = {hop["stage"] for row in map(json.loads, path.read_text().splitlines()) for hop in row.get("hops", ())}
