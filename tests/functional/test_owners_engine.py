"""Whose rule dropped it, with a real engine's own rules and state."""

from __future__ import annotations

from tests.functional.conftest import Dnettrace
from tests.functional.engine import Engine
from tests.functional.way import read


def test_dockers_rules_and_a_persons(engine: Engine, dnettrace: Dnettrace) -> None:
    engine.docker("network", "create", "web")
    try:
        engine.run("c3", "--network", "web")

        def rule(*command: str) -> tuple[str, str]:
            done = dnettrace("ping", *command, "-c", "1", "-W", "1", "--json", netns=engine.host_netns, env=engine.env())
            found = read(done, status=1).only("request")["end"]["rule"]
            return found["chain"], found["owner"]

        chain = "PREROUTING" if engine.guards else "DOCKER-ISOLATION-STAGE-2"
        assert rule("c1", "c3") == (chain, "Docker, network web")
        added = engine.on_host("iptables", "-I", "DOCKER-USER", "-o", "docker0", "-p", "icmp", "-j", "DROP")
        assert added.returncode == 0, added.stderr
        try:
            assert rule("c1", "c2") == ("DOCKER-USER", "a person")
        finally:
            engine.on_host("iptables", "-D", "DOCKER-USER", "-o", "docker0", "-p", "icmp", "-j", "DROP")
    finally:
        engine.remove("c3")
        engine.docker("network", "rm", "web")
