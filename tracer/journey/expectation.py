"""Did a packet go the way that the tables told before it was sent?"""

from __future__ import annotations

from collections.abc import Iterator

from tracer.model.journey import Hop, Journey, Result, Stage

_HOOKS = (Stage.PREROUTING, Stage.INPUT, Stage.FORWARD, Stage.OUTPUT, Stage.POSTROUTING)


def compared(expected: Journey, actual: Journey) -> tuple[bool, str]:
    """(alike, a sentence). Where the tables did not tell further, or not all was observed, the rest is not compared."""
    hooks = {hop.node for hop in actual.hops if hop.stage in _HOOKS}
    ours, theirs = list(_compared(expected, hooks)), list(_compared(actual, hooks))
    after = "the start"
    for one, other in zip(ours, theirs, strict=False):
        if (one.stage, other.stage) == (Stage.L2_FORWARD, Stage.L2_FLOOD):
            return True, f"It went as the tables told, up to {after}: {other.bridge} had not learned the MAC and flooded it."
        for a, b in zip(_words(one, other), _words(other, one), strict=True):
            if a != b:
                return False, f"Not as the tables told, after {after}: expected {a}, seen {b}."
        after = _where(one)
    told, end = expected.end, actual.end
    if told.result is end.result is Result.DROPPED and (told.node, told.reason) == (end.node, end.reason):
        return True, "It went as the tables told."  # of lookups that fail, not all are seen
    if len(theirs) < len(ours):
        if end.result is Result.DROPPED:
            expected_next = _where(ours[len(theirs)])
            return False, f"Not as the tables told, after {after}: expected {expected_next}, but it was dropped there."
        return True, f"It went as the tables told, as far as it was seen: to {after}."
    if told.result is Result.UNKNOWN:
        return True, f"It went as the tables told, as far as they tell: {told.detail}."
    if len(theirs) > len(ours):
        what = "to be dropped" if told.result is Result.DROPPED else f"to end as {told.result.value}"
        return False, f"Not as the tables told, after {after}: expected {what}, seen {_where(theirs[len(ours)])}."
    if (told.result is Result.DROPPED) is not (end.result is Result.DROPPED) and not (
            end.result is Result.DROPPED and end.node == told.node):  # a program may refuse what got to it
        return False, f"Not as the tables told, after {after}: expected {told.result.value}, seen {end.result.value}."
    return True, "It went as the tables told."


def _compared(journey: Journey, hooks: set[str]) -> Iterator[Hop]:
    """Without what caches decide, what decides nothing, and what is not observed everywhere."""
    for hop in journey.hops:
        if hop.stage in (Stage.NEIGHBOR, Stage.DELIVER, Stage.DROP):
            continue
        if hop.stage in _HOOKS and (hop.node not in hooks or not (hop.rules or hop.tables or hop.stopped_at)):
            continue
        if hop.route and hop.route.kind == "local" and hop.node != "host":
            continue
        yield hop


def _words(hop: Hop, other: Hop) -> Iterator[str]:
    """What can differ there. Rules are compared where each was traced in both."""
    role = f" as a {hop.role.value.upper()}" if hop.role else ""
    yield f"{_where(hop)}{role}"
    if hop.route and other.route:
        yield f"{_where(hop)} by {hop.detail}"
    if _traced(hop) and _traced(other):
        rules = "; ".join(rule.rule or f"the policy of {rule.chain}" for rule in hop.rules) or "no rule"
        yield f"{_where(hop)} with {rules}"
    if hop.stage in _HOOKS:
        change = hop.rewrite
        pairs = [f"{a} → {b}" for a, b in (change.src or ("", ""), change.dst or ("", "")) if a != b] if change else []
        yield f"{_where(hop)} with {', '.join(pairs) or 'its addresses unchanged'}"


def _traced(hop: Hop) -> bool:
    return hop.rules_unknown is None and hop.tables is not None and all(rule.by == "trace" for rule in hop.rules)


def _where(hop: Hop) -> str:
    return " ".join(filter(None, (hop.node, hop.device, hop.stage.value)))
