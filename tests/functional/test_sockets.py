"""Who listens: in a namespace of its own, and on a real engine with its userland proxy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.functional.engine import NETNS, Engine
from tracer.topology.netns import in_namespace
from tracer.topology.sockets import Listener, Relay, listener

LISTENS = """
import socket, sys
for family, kind, address, port, only in (
        ("4", "tcp", "0.0.0.0", 80, 0), ("6", "tcp", "::", 81, 0), ("6", "tcp", "::", 82, 1),
        ("4", "udp", "127.0.0.1", 53, 0), ("6", "udp", "::1", 53, 0)):
    s = socket.socket(socket.AF_INET6 if family == "6" else socket.AF_INET,
                      socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == "6":
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    s.bind((address, port))
    if kind == "tcp":
        s.listen()
    globals()[f"{kind}{address}{port}"] = s
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def namespace() -> Iterator[tuple[str, int]]:
    """A namespace with a process that listens, and its pid."""
    name = f"dnt{os.getpid()}-sockets"
    path = str(NETNS / name)
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        with subprocess.Popen(["nsenter", f"--net={path}", sys.executable, "-c", LISTENS], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout and process.stdout.readline() == "ready\n"
            yield path, process.pid
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.parametrize(("transport", "address", "port", "listens"), [
    ("tcp", "127.0.0.1", 80, True),
    ("tcp", "::1", 80, False),
    ("tcp", "127.0.0.1", 81, True),  # an IPv6 socket takes IPv4 too
    ("tcp", "::1", 81, True),
    ("tcp", "127.0.0.1", 82, False),  # unless it is told not to
    ("tcp", "::1", 82, True),
    ("tcp", "127.0.0.1", 83, False),
    ("tcp", "127.0.0.1", 53, False),
    ("udp", "127.0.0.1", 53, True),
    ("udp", "127.0.0.2", 53, False),
    ("udp", "::1", 53, True),
])
def test_who_listens(namespace: tuple[str, int], transport: str, address: str, port: int, listens: bool) -> None:
    path, pid = namespace
    program = os.path.basename(sys.executable)
    assert listener(path, transport, ip_address(address), port) == (Listener(pid, program) if listens else None)


def test_a_socket_of_a_process_elsewhere_is_there_all_the_same(namespace: tuple[str, int]) -> None:
    """Its holder is looked for among the namespace's own processes."""
    with in_namespace(namespace[0], lambda: socket.create_server(("127.0.0.1", 90))):
        assert listener(namespace[0], "tcp", ip_address("127.0.0.1"), 90) == Listener(None, None)


def test_a_namespace_that_is_gone() -> None:
    with pytest.raises(OSError, match="nowhere"):
        listener("/run/netns/nowhere", "tcp", ip_address("127.0.0.1"), 80)


@pytest.mark.parametrize("address", ["198.51.100.2", "127.0.0.1", "172.17.0.1", "2001:db8::2", "::1"])
def test_docker_s_proxy_and_its_goal(engine: Engine, address: str) -> None:
    goal = engine.address("c2", ip_address(address).version)
    found = listener(engine.host_netns, "tcp", ip_address(address), 8080)
    assert found
    assert (found.program, found.relay) == ("docker-proxy", Relay(ip_address(goal), 80))


def test_a_container_s_own_server(engine: Engine) -> None:
    path = f"/proc/{engine.pid('c2')}/ns/net"
    assert listener(path, "tcp", ip_address("172.17.0.3"), 80) == Listener(engine.pid("c2"), "httpd")
