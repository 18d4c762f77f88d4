"""Rules at hops, from trace messages that a real engine's packets made."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

from rich.console import Console

from tests.unit.recording import Recording, load
from tracer.journey.walks import OFF, Walks
from tracer.kernel.rules import decode
from tracer.model.journey import Hop, Journey, Stage
from tracer.model.layout import Place
from tracer.model.probes import Batch, Trace
from tracer.render import words
from tracer.render.text import TextRenderer
from tracer.topology.nfnetlink import attribute, nested, number, text


def journey(recording: Recording, kind: str = "request") -> Journey:
    (found,) = [j for j in recording.journeys() if j.kind == kind]
    return found


def at(told: Journey, stage: Stage, node: str = "host") -> Hop:
    (found,) = [hop for hop in told.hops if hop.stage is stage and hop.node == node]
    return found


def said(hop: Hop) -> list[tuple[str, str]]:
    return [(rule.rule or f"policy of {rule.chain}", rule.verdict) for rule in hop.rules]


def test_each_rule_in_the_order_in_which_it_was_met() -> None:
    request = journey(load("rules"))
    assert said(at(request, Stage.FORWARD)) == [
        ("-A FORWARD -j DOCKER-USER", "jump DOCKER-USER"),
        ("-A DOCKER-USER -j RETURN", "return"),
        ("-A FORWARD -j DOCKER-ISOLATION-STAGE-1", "jump DOCKER-ISOLATION-STAGE-1"),
        ("-A DOCKER-ISOLATION-STAGE-1 -j RETURN", "return"),
        ("-A FORWARD -o docker0 -j DOCKER", "jump DOCKER"),
        ("-A FORWARD -i docker0 -o docker0 -j ACCEPT", "accept")]
    assert words.tables(at(request, Stage.FORWARD)) == \
        "filter: FORWARD → DOCKER-USER → DOCKER-ISOLATION-STAGE-1 → DOCKER accept"
    assert {hop.rules_unknown for hop in request.hops} == {None}


def test_a_policy_that_lets_pass_is_not_worth_a_chain() -> None:
    hop = at(journey(load("rules")), Stage.PREROUTING)
    assert said(hop) == [("policy of PREROUTING", "accept")]
    assert words.tables(hop) == "conntrack NEW · nat"


def test_nat_s_chains_see_the_first_packet_alone_and_that_lacks_nothing() -> None:
    recording = load("rules_outside")
    assert ("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", "accept") in \
        said(at(journey(recording), Stage.POSTROUTING))
    reply = at(journey(recording, "reply"), Stage.PREROUTING)
    assert (reply.rules, reply.rules_unknown) == ((), None)


def test_the_rule_that_dropped_it() -> None:
    told = journey(load("rules_isolated"))
    rule = told.end.rule
    assert rule and (rule.table, rule.chain, rule.verdict) == ("filter", "DOCKER-ISOLATION-STAGE-2", "drop")
    assert rule == at(told, Stage.FORWARD).rules[-1]
    assert words.verdict(told) == "✗ dropped at filter/DOCKER-ISOLATION-STAGE-2 by rule"


def test_without_messages_the_hop_says_why() -> None:
    recording = load("rules")
    off = dataclasses.replace(recording, traces=[], untraced=None)
    assert at(journey(off), Stage.FORWARD).rules_unknown == OFF
    host = recording.topology.host
    barred = dataclasses.replace(recording, traces=[], untraced={host: "no table could be added"})
    assert at(journey(barred), Stage.FORWARD).rules_unknown == "rules are not traced here: no table could be added"
    silent = dataclasses.replace(recording, traces=[])
    assert at(journey(silent), Stage.FORWARD).rules_unknown == "no trace message of filter/FORWARD was seen"


def test_a_walk_that_lost_its_end_says_so() -> None:
    recording = load("rules")
    last = max(n for n, trace in enumerate(recording.traces) if trace.table == "filter")
    torn = dataclasses.replace(recording, traces=[t for n, t in enumerate(recording.traces) if n != last])
    assert at(journey(torn, "reply"), Stage.FORWARD).rules_unknown == "messages of filter/FORWARD are missing"


def test_packets_that_look_the_same_are_told_apart_by_their_order_or_not_at_all() -> None:
    recording = load("rules")
    again = [trace for trace in recording.traces if trace.table == "filter"]
    twice = dataclasses.replace(recording, traces=[*recording.traces, *again])
    hop = at(journey(twice), Stage.FORWARD)
    assert (hop.rules, hop.rules_unknown) == ((), "filter/FORWARD was passed by several packets that look the same")


def without_links(name: str) -> Recording:
    """As a kernel before 6.4 would have told it."""
    recording = load(name)
    return dataclasses.replace(recording, events=[e for e in recording.events if e.place != Place.HOOK], hook_points=[])


def test_without_netfilter_links_the_messages_make_the_hops() -> None:
    for name in ("rules", "rules_outside"):
        told = journey(without_links(name))
        stages = [hop.stage.value for hop in told.hops if hop.node == "host" and hop.stage is not Stage.ROUTE]
        assert stages == (["ingress", "prerouting", "l2_forward", "forward", "postrouting", "egress"] if name == "rules" else
                          ["ingress", "prerouting", "l2_local", "forward", "postrouting", "egress"])
        assert said(at(told, Stage.FORWARD)) == said(at(journey(load(name)), Stage.FORWARD))
    reply = journey(without_links("rules_outside"), "reply")
    assert [hop.stage.value for hop in reply.hops if hop.node == "host" and hop.stage is not Stage.ROUTE] == [
        "ingress", "forward", "egress", "l2_forward", "egress"]
    told = journey(without_links("rules_isolated"))
    assert told.hops[-1].stage is Stage.FORWARD
    assert told.end.rule == journey(load("rules_isolated")).end.rule


def test_a_text_that_is_not_known_is_said(tmp_path: Path) -> None:
    recording = load("rules_isolated")
    why = "its text needs nft, which is not there or may not read the table"
    bare = [dataclasses.replace(trace, text=None, unsure=why if trace.handle else None) for trace in recording.traces]
    told = journey(dataclasses.replace(recording, traces=bare))
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        TextRenderer(Console(file=file)).journey(told)
    out = (tmp_path / "out").read_text(encoding="utf-8")
    assert out.count(why) == 1
    rule = told.end.rule
    assert rule and f"by rule with handle {rule.handle}, whose text is not known" in out


def test_decoding() -> None:
    verdict = nested(5, number(1, -3) + text(2, "own"))
    rule = text(1, "filter") + text(2, "INPUT") + attribute(3, struct.pack(">Q", 7)) + number(4, 3) + verdict + number(6, 9)
    assert decode(1, 2, rule, {("ip", "filter"): 4}) == Trace(
        1, 9, "ip", "filter", "INPUT", "rule", "jump", handle=7, target="own", table_handle=4)
    # a rule that returns is told as such by new kernels, as a return with its handle by Linux 6.1
    own = text(1, "filter") + text(2, "INPUT")
    back = own + attribute(3, struct.pack(">Q", 7)) + number(6, 9) + nested(5, number(1, -5))
    assert decode(1, 2, back + number(4, 2), {}).kind == decode(1, 2, back + number(4, 3), {}).kind == "rule"
    assert decode(1, 2, own + number(4, 3), {}).kind == "return"
    policy = text(1, "f") + text(2, "i") + number(4, 1) + number(16, 0) + number(6, 9) + number(15, 10)
    assert decode(1, 1, policy, {}) == Trace(1, 9, "inet", "f", "i", "policy", "drop", protocol=0x86DD)


def test_packets_that_look_all_the_same_do_not_pile_up() -> None:
    recording, walks = load("rules"), Walks()
    for turn in range(2000):
        walks.feed(Batch([event._replace(time=event.time + turn) for event in recording.events], 0))
    assert max(map(len, walks._passed.values())) <= 257
