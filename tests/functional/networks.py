"""An engine's host with one of each that `topo` must tell: for its functional tests, and to record what unit tests read.

    bridge  c1, c2 (publishes 8080)                   lan    c7, macvlan on eth0
    web     c3 (publishes 9090 on 127.0.0.1), c4      host   c5
    data    c3, internal                              none   c6
    six     c8, with IPv6                             quiet  c9 (stopped), c10; icc off
    br-own  a bridge that is not Docker's, with a port to the namespace own
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.functional.engine import Engine

NETWORKS = {
    "web": (), "data": ("--internal",), "six": ("--ipv6", "--subnet", "fd00:66::/64"),
    "quiet": ("-o", "com.docker.network.bridge.enable_icc=false"),
    "lan": ("-d", "macvlan", "-o", "parent=eth0", "--subnet", "198.51.100.0/24", "--ip-range", "198.51.100.128/25"),
}
CONTAINERS = {
    "c3": ("--network", "web", "-p", "127.0.0.1:9090:90"), "c4": ("--network", "container:c3"), "c5": ("--network", "host"),
    "c6": ("--network", "none"), "c7": ("--network", "lan"), "c8": ("--network", "six"), "c9": ("--network", "quiet"),
    "c10": ("--network", "quiet"),
}


@contextmanager
def every_kind(engine: Engine) -> Iterator[str]:
    """Yields the name of the namespace on br-own."""
    own = f"{engine.name}-own"
    try:
        for name, options in NETWORKS.items():
            engine.docker("network", "create", *options, name)
        for name, options in CONTAINERS.items():
            engine.run(name, *options)
        engine.docker("network", "connect", "data", "c3")
        engine.docker("kill", "c9")
        host = engine.host_netns.rpartition("/")[2]
        for line in (f"netns add {own}", f"-n {host} link add br-own type bridge",
                     f"-n {host} addr add 10.55.0.1/24 dev br-own",
                     f"-n {host} link add own0 master br-own type veth peer name eth0 netns {own}",
                     f"-n {host} link set br-own up", f"-n {host} link set own0 up",
                     f"-n {own} addr add 10.55.0.2/24 dev eth0", f"-n {own} link set eth0 up"):
            subprocess.run(["ip", *line.split()], check=True, capture_output=True)
        yield own
    finally:
        engine.remove(*CONTAINERS)
        for name in NETWORKS:
            engine.docker("network", "rm", name)
        subprocess.run(["ip", "netns", "del", own], capture_output=True)
        engine.on_host("ip", "link", "del", "br-own")
