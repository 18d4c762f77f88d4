"""Neighbour lookups (ARP, IPv6 neighbour discovery) in one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from tracer.journey.headers import is_question
from tracer.model.journey import Journey
from tracer.model.topology import Topology


def sentences(journeys: Sequence[Journey], topology: Topology) -> list[str]:
    """One for each pair of asking and asked-for address."""
    requests = [j for j in journeys if j.kind == "request"]
    questions: dict[tuple[str, str], list[Journey]] = {}
    answers: dict[tuple[str, str], Journey] = {}
    for journey in journeys:
        asked, asking = journey.packet.asked, journey.packet.asking
        if asked and asking and journey.kind == "arp":
            if is_question(journey.packet):
                questions.setdefault((asked, asking), []).append(journey)
            else:
                answers.setdefault((asked, asking), journey)
    return [_sentence(pair, questions.get(pair, []), answers.get(pair), requests, topology)
            for pair in dict.fromkeys([*questions, *answers])]


def _sentence(pair: tuple[str, str], asked: list[Journey], answer: Journey | None, requests: list[Journey],
              topology: Topology) -> str:
    whose, who = (_name(address, topology) for address in pair)
    times = f"{len(asked)} times " if len(asked) > 1 else ""
    if not asked:
        return f"{who} was told the MAC of {whose}; the question was not seen"
    if not answer:
        return f"{who} asked {times}for the MAC of {whose}: no answer was seen"
    question = next((q for q in reversed(asked) if q.wall_ns <= answer.wall_ns), asked[0])
    hops = len(question.hops) + len(answer.hops)
    took = answer.wall_ns + answer.duration_ns - question.wall_ns
    waited = any(r.wall_ns <= asked[0].wall_ns <= r.wall_ns + r.duration_ns for r in requests)
    return f"{who} asked {times}for the MAC of {whose}{' first' if waited else ''}: {hops} hops, {took / 1000:.0f} µs"


def _name(address: str, topology: Topology) -> str:
    owner = topology.owner(address)
    return f"{topology.node(owner)} ({address})" if owner else address
