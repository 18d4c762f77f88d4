"""Writes the rules of a real engine (DNETTRACE_ENGINE_ROOT) with what its API tells of it, for test_owners.py.

    python -m tests.unit.rules.record FILE    (in a mount namespace as scripts/engines makes it)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.functional.engine import private_engine
from tracer.topology.engine import Engine

NETWORKS = (("web", "--opt", "com.docker.network.bridge.enable_icc=false", "--subnet", "172.30.0.0/24"),
            ("inside", "--internal", "--opt", "com.docker.network.bridge.name=inside0"),
            ("six", "--ipv6", "--subnet", "fd00:6::/64"))
PORTS = ("-p", "127.0.0.1:53:53/udp", "-p", "8081:81", "-p", "8082:82")


def main() -> None:
    with private_engine("rules") as engine:
        for name, *options in NETWORKS:
            engine.docker("network", "create", *options, name)
        engine.run("c3", "--network", "web", *PORTS)
        engine.run("i1", "--network", "inside")
        engine.run("s1", "--network", "six", "-p", "8083:83")
        api = Engine(engine.docker_host)
        found = {"version": engine.docker("version", "-f", "{{.Server.Version}}"),
                 "networks": api._get("/networks"), "list": api._get("/containers/json?all=1"),
                 **{family: engine.on_host(f"{tool}-save").stdout.splitlines()
                    for family, tool in (("ip", "iptables"), ("ip6", "ip6tables"))}}
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
