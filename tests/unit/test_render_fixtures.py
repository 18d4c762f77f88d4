"""Journeys built by hand after issue 2's example, for the render tests."""

from __future__ import annotations

from dataclasses import replace

from tracer.model.journey import End, Hop, Journey, Packet, Result, Rewrite, Role, Stage, Table
from tracer.model.probes import Missing
from tracer.model.report import Failure, OnBridge, Place, RoundTrip, Start, Summary

C1, C2, HOST = 4026532255, 4026532341, 4026531840
DOCKER0 = OnBridge("docker0", "172.17.0.1/16")
START = Start("0.1.0", "6.12.0", Place("c1", "172.17.0.2", DOCKER0), Place("c2", "172.17.0.3", DOCKER0),
              attached=("net_dev_queue", "kfree_skb"),
              missing=(Missing("br_flood", "no kprobes here"), Missing("br_pass_frame_up", "no kprobes here")),
              notes=("c2 shares the namespace of c9.",))
SUMMARY = Summary(3, 3, 6, 66, 0, {"docker0": ("switch",)}, {"delivered": 6}, RoundTrip(0.041, 0.0534, 0.08))
FAILED = replace(SUMMARY, answered=1, lost_events=2, rtt=RoundTrip(0.081, 0.081, 0.081),
                 bridges={"docker0": ("nic",), "br-web": ("nic", "switch")},
                 failures=(Failure(2, "no answer within 1 s"), Failure(3, "never left: no route to 10.9.0.1")))


def table(name: str, chain: str, priority: int, family: str = "ip") -> Table:
    return Table(family, name, chain, priority)


def packet(**changes: object) -> Packet:
    made = Packet(4, "icmp", "172.17.0.2", "172.17.0.3", 84, icmp_type=8, icmp_code=0, icmp_id=0x1234, icmp_seq=1, ttl=64)
    return made._replace(**changes)


_HOPS = (
    Hop(0, C1, "c1", "eth0", 5, Stage.EGRESS, detail="leaves the container"),
    Hop(3400, HOST, "host", "vethf60c6b4", 6, Stage.INGRESS, bridge="docker0",
        detail="other end of c1:eth0, port of docker0"),
    Hop(12500, HOST, "host", "docker0", 4, Stage.PREROUTING, bridge="docker0", conntrack="NEW",
        tables=(table("nat", "PREROUTING", -100), table("raw", "PREROUTING", -300))),
    Hop(14700, HOST, "host", "docker0", 4, Stage.FORWARD, bridge="docker0", tables=(table("filter", "FORWARD", 0),)),
    Hop(15300, HOST, "host", "docker0", 4, Stage.L2_FORWARD, Role.SWITCH, "docker0",
        detail="as a SWITCH: to the port of c2 (fdb 02:42:ac:11:00:03)"),
    Hop(15800, HOST, "host", "docker0", 4, Stage.POSTROUTING, bridge="docker0",
        tables=(table("nat", "POSTROUTING", 100),)),
    Hop(16800, HOST, "host", "veth0df771b", 8, Stage.EGRESS, bridge="docker0", detail="other end of c2:eth0"),
    Hop(21000, C2, "c2", "eth0", 7, Stage.INGRESS, detail="enters the container"),
    Hop(47000, C2, "c2", None, None, Stage.DELIVER, detail="ICMP echo, answered"),
)
REQUEST = Journey(1, packet(), _HOPS, End(Result.DELIVERED, "c2", "eth0"), "request", 1, "c1", "c2",
                  wall_ns=1_700_000_000_000_000_000)
DROPPED = replace(REQUEST, hops=(*_HOPS[:4], _HOPS[3]._replace(t_ns=16100, stage=Stage.DROP, tables=())),
                  end=End(Result.DROPPED, "host", "docker0", Stage.FORWARD, "NETFILTER_DROP",
                          "by a rule of a chain at this hook"))
UNKNOWN = replace(REQUEST, hops=_HOPS[:2], lost_events=3, complete=False,
                  end=End(Result.UNKNOWN, "host", "vethf60c6b4", Stage.INGRESS, detail="no drop was seen either"))
MASQUERADED = replace(
    REQUEST, packet=packet(dst="203.0.113.1"), target=None, end=End(Result.LEFT, "host", "eth0"),
    hops=(_HOPS[0],
          Hop(4000, HOST, "host", "docker0", 4, Stage.L2_LOCAL, Role.NIC, "docker0", inferred=True,
              detail="as a NIC: up into the host (from what followed)"),
          Hop(9000, HOST, "host", "eth0", 2, Stage.INPUT, conntrack="NEW"),
          Hop(9500, HOST, "host", "eth0", 2, Stage.OUTPUT),
          Hop(1_250_000, HOST, "host", "eth0", 2, Stage.POSTROUTING, conntrack="NEW", tables=(
              table("nat", "POSTROUTING", 100), table("fw", "out", 0, "inet")),
              rewrite=Rewrite(src=("172.17.0.2", "198.51.100.2")))))
HOSTILE = replace(REQUEST, source="c\x1b[31m1", target="[red]c2[/red]", hops=(
    _HOPS[0]._replace(node="c\x1b[31m1", device="e\u202eth", detail="[bold]x[/bold]\x07"),))
ARP = Journey(2, Packet(0, "arp", "172.17.0.2", "172.17.0.3", 28, arp_op=1),
              (Hop(0, C1, "c1", "eth0", 5, Stage.EGRESS),
               Hop(11000, HOST, "host", "docker0", 4, Stage.L2_FLOOD, Role.SWITCH, "docker0")),
              End(Result.DROPPED, "host", "docker0", Stage.DROP, "OTHERHOST"), "arp", 1, "c1", "c2")


def _copy(at: int) -> Journey:
    mine = at == 0
    node = "c2" if mine else f"c{at + 2}"
    hops = (Hop(0, HOST, "host", f"veth{at:07d}", 10 + at, Stage.EGRESS, bridge="docker0"),
            Hop(61000 if mine else 900, C2 + at, node, "eth0", 5, Stage.DELIVER if mine else Stage.DROP))
    end = End(Result.DELIVERED, node) if mine else End(Result.DROPPED, node, "eth0", Stage.DROP, "ARP_NOT_MINE")
    return Journey(100 + at, ARP.packet, hops, end, "copy", 1, "c1", node if mine else None, parent=2)


FLOOD = tuple(_copy(at) for at in range(60))
