"""Record real runs for the unit tests: `sudo .venv/bin/python -m tests.unit.record [NAME ...]`.

Those in the built-in lab need it for themselves, and just made (a lab that is used has its MAC addresses known). Those on a
real engine start one of their own; "networks" is no run, but the network of tests/functional/networks.py as `topo` reads it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from tests.functional.engine import private_engine
from tests.functional.networks import every_kind
from tests.functional.pinging import answers
from tests.unit.recording import Network, Recording, save
from tracer.cli import telling
from tracer.cli.main import main
from tracer.journey.assemble import Assembler
from tracer.map.view import View
from tracer.model.layout import Event
from tracer.model.probes import Batch, Machine, Trace
from tracer.model.selection import Selection
from tracer.model.topology import Topology
from tracer.topology import lab, netns
from tracer.topology.engine import find_engine
from tracer.topology.host import Host
from tracer.topology.ruleset import read_ruleset

RUNS = {
    "one_bridge": ["ping", "c1", "c2", "-c", "2", "-i", "0.2"],
    "one_bridge_v6": ["ping", "c2", "c1", "-6", "-c", "1"],
    "gateway": ["ping", "c1", "host", "-c", "1"],
    "from_host": ["ping", "host", "c3", "-c", "1"],
    "outside": ["ping", "c1", "203.0.113.1", "-c", "1"],
    "isolated": ["ping", "c1", "c3", "-c", "1"],
    "ttl": ["ping", "c1", "203.0.113.1", "-c", "1", "--ttl", "1"],
    "nobody": ["ping", "c1", "172.17.0.99", "-c", "1"],
    "fragments": ["ping", "c1", "c2", "-c", "1", "-s", "4000"],
    "fragments_v6": ["ping", "c1", "c2", "-c", "1", "-s", "4000", "-6"],
    "published": ["ping", "outside", "198.51.100.2", "--tcp", "8080", "-c", "1"],
    "arp": ["ping", "c1", "c2", "--arp", "-c", "2", "-i", "0.2"],
    "itself": ["ping", "c1", "127.0.0.1", "-c", "1"],
}
# In the lab of a kernel that lets functions be probed, whose files go with it: sudo ./scripts/kernels 6.12 -- sh -c
# 'python -m tests.unit.record probed probed_flood ... && tar cz tests/unit/recorded/probed* | base64'
PROBED_RUNS = {
    "probed": ["ping", "c1", "c2", "-c", "1"],
    "probed_flood": ["ping", "c1", "c2", "-c", "1"],
    "probed_host": ["ping", "c1", "host", "-c", "1"],
    "probed_udp": ["ping", "c1", "c2", "--udp", "53", "-c", "1"],
    "probed_tcp": ["ping", "c1", "c2", "--tcp", "80", "-c", "1"],
    "probed_fragments_v6": ["ping", "c1", "c2", "-c", "1", "-s", "4000", "-6"],
    "probed_waiting": ["ping", "c1", "c2", "-c", "1"],
    "probed_nobody": ["ping", "c1", "172.17.0.99", "-c", "1"],
}
# On an engine with c3 on a network of its own: what its rules do.
ENGINE_RUNS = {
    "rules": ["ping", "c1", "c2", "-c", "1"],
    "rules_outside": ["ping", "c1", "203.0.113.1", "-c", "1"],
    "rules_isolated": ["ping", "c1", "c3", "-c", "1"],
}


class Recorder(Assembler):
    """An assembler that keeps what it is fed."""

    last: Recorder

    def __init__(self, selection: Selection, topology: Topology, machine: Callable[[], Machine],
                 target: int | None) -> None:
        super().__init__(selection, topology, machine, target)
        self.fed: list[Event] = []
        self.seqs: list[int] = []
        self.times: list[tuple[int, int]] = []
        self.traced: list[Trace] = []
        self.kept, self.target = topology, target
        Recorder.last = self

    def feed(self, batch: Batch) -> None:
        self.fed += batch.events
        self.traced += batch.traces
        self.now = self._machine()
        super().feed(batch)

    def sent(self, seq: int, when: int) -> None:
        self.times.append((when, seq))
        super().sent(seq, when)

    def answered(self, seq: int) -> None:
        self.seqs.append(seq)
        super().answered(seq)


def record(name: str, arguments: list[str]) -> None:
    telling.Assembler = Recorder  # type: ignore[misc]
    main(arguments)
    run = Recorder.last
    links = run.kept.namespaces[run.kept.host].links.values()
    names = {link.name: f"veth-{run.kept.node(link.peer.netns)}" for link in links
             if link.kind == "veth" and link.peer and link.name.startswith("veth")}
    save(name, Recording(run._selection, run.kept, run.target, dict(run.now.reasons), list(run.now.hook_points.values()),
                         run.now.clock_offset_ns, run.seqs, [list(t) for t in run.times], run.fed, names, run.traced,
                         dict(run.now.untraced or {}), list(run.now.attached)))


def record_probed(name: str) -> None:
    """Whoever is asked is known, but to who is to wait, and listens; a bridge that is to flood knows nobody."""
    with ExitStack() as stack:
        for kind, port in ((socket.SOCK_DGRAM, 53), (socket.SOCK_STREAM, 80)):
            server = stack.enter_context(netns.in_namespace(lab.path("c2"), lambda kind=kind: socket.socket(type=kind)))
            server.bind(("172.17.0.3", port))
            if kind == socket.SOCK_STREAM:
                server.listen()
        for address in ("172.17.0.3", "172.17.0.1", "fd00:17::3") if name not in ("probed_waiting", "probed_nobody") else ():
            assert answers(lab.path("c1"), address)
        if name == "probed_flood":
            silence = "for port in $(ip -o link show master docker0 | cut -d: -f2 | cut -d@ -f1); do " \
                "ip link set $port type bridge_slave learning off; done; ip link set docker0 type bridge fdb_flush"
            subprocess.run(["nsenter", f"--net={lab.path('host')}", "sh", "-c", silence], check=True)
        record(name, ["--lab", *PROBED_RUNS[name]])


def record_networks() -> None:
    with private_engine() as engine, every_kind(engine):
        host = Host(engine.host_netns, find_engine({"DOCKER_HOST": engine.docker_host}), netns.named)
        topology = host.everything()
        ours = {space.netns: space for space in View(topology).spaces}
        topology = replace(topology, namespaces=ours, names={n: name for n, name in topology.names.items() if n in ours})
        save("networks", Network(topology, [read_ruleset(space) for space in View(topology).spaces], {engine.name: "test"}))


if __name__ == "__main__":
    wanted = sys.argv[1:] or [*RUNS, *ENGINE_RUNS, "networks"]
    if "networks" in wanted:
        record_networks()
    for name in RUNS.keys() & wanted:
        lab.down()
        lab.up()
        record(name, ["--lab", *RUNS[name]])
        lab.down()
    for name in PROBED_RUNS.keys() & wanted:
        lab.down()
        lab.up()
        record_probed(name)
        lab.down()
    if ENGINE_RUNS.keys() & wanted:
        with private_engine() as engine:
            engine.docker("network", "create", "web")
            engine.run("c3", "--network", "web")
            os.environ.update(engine.env())
            netns._enter(engine.host_netns)
            for name in ENGINE_RUNS.keys() & wanted:
                record(name, ENGINE_RUNS[name])
