"""One journey as a sequence diagram that Markdown viewers draw (https://mermaid.js.org/syntax/sequenceDiagram.html)."""

from __future__ import annotations

from tracer.model.journey import Hop, Journey, Result, Stage, endpoint

_SENDS = (Stage.EGRESS, Stage.L2_FORWARD, Stage.L2_FLOOD, Stage.L2_LOCAL, Stage.INGRESS)


def diagram(journey: Journey) -> str:
    """A participant for each node and each of its bridges, a message where the packet moves from one to another, a note
    where something was decided about it."""
    where = [_participant(hop) for hop in journey.hops]
    names = list(dict.fromkeys(where))
    keys = {name: f"p{number}" for number, name in enumerate(names)}
    packet = journey.packet
    lines = ["sequenceDiagram", f"    title {escaped(f'{packet.proto} {packet.src} to {packet.dst}, journey {journey.id}')}"]
    lines += [f"    participant {keys[name]} as {escaped(name)}" for name in names]
    at = where[0] if where else None
    for hop, name in zip(journey.hops, where, strict=True):
        if at is not None and name != at:
            lines.append(f"    {keys[at]}->>{keys[name]}: {escaped(_headers(journey, hop))}")
        at = name
        for said in _said(hop):
            lines.append(f"    Note over {keys[name]}: {escaped(said)}")
    if at is not None:
        end = journey.end
        text = end.result.value if end.result is Result.DELIVERED else ": ".join(filter(None, (
            end.result.value, end.reason, next((cause.sentence for cause in end.causes), end.detail))))
        lines.append(f"    Note over {keys[at]}: {escaped(text)}")
    return "\n".join(lines) + "\n"


def _participant(hop: Hop) -> str:
    return f"{hop.node} {hop.bridge}" if hop.bridge and hop.stage in (
        Stage.L2_FORWARD, Stage.L2_FLOOD, Stage.L2_LOCAL) else hop.node


def _headers(journey: Journey, hop: Hop) -> str:
    """By which device it came; the addresses are the title's, and rewrites have notes."""
    return f"{journey.packet.proto} by {hop.device}" if hop.device else journey.packet.proto


def _said(hop: Hop) -> list[str]:
    said = []
    if hop.stage in (Stage.L2_FORWARD, Stage.L2_FLOOD, Stage.L2_LOCAL, Stage.NEIGHBOR):
        said.append(hop.detail)
    if hop.route:
        said.append(f"route: {hop.detail}")
    said += [f"{hop.stage.value}: {rule.rule or f'{rule.table} {rule.chain}, policy'}: {rule.verdict}" for rule in hop.rules]
    if change := hop.rewrite:
        for what, ends, ports in (("source", change.src, change.sport), ("destination", change.dst, change.dport)):
            if ends or ports:
                before, after = (endpoint(ends[n] if ends else "", ports[n] if ports else None) for n in (0, 1))
                said.append(f"{hop.stage.value}: {what} {before} becomes {after}")
    return said


def escaped(text: str) -> str:
    """What mermaid would read as its own, as its entities; and no control characters."""
    return "".join(f"#{ord(c)};" if c in "#;<>\"{}" or not c.isprintable() else c for c in text)
