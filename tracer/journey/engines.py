"""What the causes need to know of an engine, by the command that people talk to it with (Topology.client)."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.model.topology import Topology


@dataclass(frozen=True, slots=True)
class EngineWords:
    name: str  # as owners.owner() begins with it
    chains: tuple[str, ...]  # how the names of its chains begin
    restore: str  # makes it write its rules anew
    mtu: str  # the option of `network create` for an MTU


_ENGINES = {
    "docker": EngineWords("Docker", ("DOCKER",), "systemctl restart docker", "com.docker.network.driver.mtu"),
    # netavark's; those before Podman 4 left it to CNI's plugins
    "podman": EngineWords("podman", ("NETAVARK", "CNI-"), "podman network reload --all", "mtu"),
}


def engine_words(topology: Topology) -> EngineWords:
    return _ENGINES.get(topology.client, _ENGINES["docker"])
