"""A proxy's goal, by its command line."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tracer.topology.sockets import Relay, relay

PROXY = "/usr/bin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.3 -container-port 80"


@pytest.mark.parametrize(("line", "goal"), [
    (PROXY, Relay(ip_address("172.17.0.3"), 80)),
    (f"{PROXY} -use-listen-fd", Relay(ip_address("172.17.0.3"), 80)),
    ("docker-proxy -container-ip fd00:17::3 -container-port 53 -proto udp", Relay(ip_address("fd00:17::3"), 53)),
    ("docker-proxy --container-ip=10.0.0.2 --container-port=8", Relay(ip_address("10.0.0.2"), 8)),
    ("docker-proxy -container-ip 172.17.0.3", None),
    ("docker-proxy -container-ip nowhere -container-port 80", None),
    ("docker-proxy", None),
    ("nginx -container-ip 172.17.0.3 -container-port 80", None),
    ("rootlessport", None),
    ("", None),
])
def test_the_goal_of_a_proxy(line: str, goal: Relay | None) -> None:
    assert relay(line.split(" ")) == goal
