"""The private engine is what the other tests take it for, and goes without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.functional.engine import BASE, NETNS, Engine, clear_leftovers, mounts, processes


def test_containers_reach_each_other_over_docker0(engine: Engine) -> None:
    address = engine.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "c2")
    assert address.startswith("172.17.0.")
    assert ", 0% packet loss" in engine.docker("exec", "c1", "ping", "-c", "1", "-W", "2", address)


def test_the_uplink_carries_containers_out_behind_the_hosts_address(engine: Engine) -> None:
    assert ", 0% packet loss" in engine.docker("exec", "c1", "ping", "-c", "1", "-W", "2", "203.0.113.1")
    assert "198.51.100.2" in engine.on_wan("ip", "route", "get", "198.51.100.2").stdout


def test_docker0_is_on_the_engines_host_and_not_on_the_machine(engine: Engine) -> None:
    links = json.loads(engine.on_host("ip", "-j", "link", "show", "type", "bridge").stdout)
    assert "docker0" in [link["ifname"] for link in links]
    assert "172.17.0.0/16" in engine.on_host("iptables-save", "-t", "nat").stdout
    assert os.stat(engine.host_netns).st_ino != os.stat("/proc/self/ns/net").st_ino


def test_containers_come_and_go(engine: Engine) -> None:
    engine.run("passing", "--label", "x=y")
    try:
        pid = engine.pid("passing")
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    finally:
        engine.remove("passing")
    with pytest.raises(RuntimeError, match="No such container"):
        engine.docker("start", "passing")


def test_an_engine_of_killed_tests_is_cleared_by_the_next(engine: Engine, tmp_path: Path) -> None:
    code = ("import time; from tests.functional.engine import private_engine\n"
            "with private_engine() as e: print(e.name, flush=True); time.sleep(1000)")
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE,
                          text=True) as other:
        try:
            assert other.stdout
            name = other.stdout.readline().strip()
        finally:
            other.send_signal(signal.SIGKILL)
    home = BASE / f"{name}-engine"
    assert processes(home), "the engine should outlive its killed starter until it is cleared"
    clear_leftovers()
    assert not processes(home)
    assert not home.exists()
    assert not list(NETNS.glob(f"{name}-*"))
    assert not [point for point in mounts() if name in point]
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and engine.docker("ps", "-q", "--filter", "name=^c[12]$").count("\n") != 1:
        time.sleep(0.1)
    assert len(engine.docker("ps", "-q", "--filter", "name=^c[12]$").split()) == 2, "the living engine was harmed"
