"""What ping says of the way that it expected: where it first differs, and nothing where only caches differ."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.recording import load
from tests.unit.trace import items, write
from tracer.cli.main import main
from tracer.cli.telling import Telling
from tracer.journey.expectation import compared
from tracer.model.journey import End, Hop, Journey, Result, Rewrite, Rule, Stage
from tracer.model.run import Begin
from tracer.render.text import TextRenderer

ALIKE = (True, "It went as the tables told.")


def request(name: str) -> Journey:
    return next(j for j in load(name).journeys() if j.kind == "request" and j.seq == 1)


def at(journey: Journey, where: Stage, **changes: object) -> Journey:
    """With the host's hop of this stage otherwise."""
    hops = [hop._replace(**changes) if hop.stage is where and hop.node == "host" else hop  # type: ignore[arg-type]
            for hop in journey.hops]
    return replace(journey, hops=tuple(hops))


def cut(journey: Journey, stage: Stage, result: Result = Result.DROPPED) -> Journey:
    """Ended at the host's hop of this stage."""
    last = next(n for n, hop in enumerate(journey.hops) if hop.stage is stage and hop.node == "host")
    return replace(journey, hops=journey.hops[:last + 1], end=End(result, "host", None, stage))


@pytest.mark.parametrize("name", ["rules", "rules_outside", "rules_isolated", "published", "one_bridge_v6", "from_host"])
def test_as_expected(name: str) -> None:
    assert compared(request(name), request(name)) == ALIKE


def test_another_rule() -> None:
    one = request("rules")
    rule = Rule("ip", "filter", "DOCKER-USER", "-A DOCKER-USER -j ACCEPT", "accept")
    alike, said = compared(one, at(one, Stage.FORWARD, rules=(rule,)))
    assert not alike
    assert said.startswith("Not as the tables told, after host docker0 l2_forward: expected host docker0 forward with ")
    assert said.endswith("seen host docker0 forward with -A DOCKER-USER -j ACCEPT.")
    untraced = at(one, Stage.FORWARD, rules=(), rules_unknown="why")
    assert compared(one, untraced) == ALIKE


def test_another_way() -> None:
    one, other = request("rules"), request("rules_isolated")
    alike, said = compared(one, other)
    assert not alike
    assert "expected c1 eth0 route by " in said
    alike, said = compared(request("rules_outside"), at(request("rules_outside"), Stage.POSTROUTING, rewrite=None))
    assert (alike, said.rpartition(", seen ")[2]) == (False, "host docker0 postrouting with its addresses unchanged.")
    changed = at(request("rules"), Stage.PREROUTING, rewrite=Rewrite(dst=("a", "b")))
    assert "seen host docker0 prerouting with a → b" in compared(request("rules"), changed)[1]


def test_an_end_before() -> None:
    one = request("rules")
    assert compared(one, cut(one, Stage.PREROUTING)) == (
        False, "Not as the tables told, after host docker0 prerouting: expected host docker0 l2_forward, but it was dropped "
        "there.")
    alike, said = compared(one, cut(one, Stage.PREROUTING, Result.UNKNOWN))
    assert (alike, said) == (True, "It went as the tables told, as far as it was seen: to host docker0 prerouting.")
    assert not compared(cut(one, Stage.FORWARD), one)[0]
    assert "expected to be dropped, seen host docker0 postrouting" in compared(cut(one, Stage.FORWARD), one)[1]


def test_where_the_tables_do_not_tell_further() -> None:
    one = request("rules")
    short = replace(cut(one, Stage.PREROUTING), end=End(Result.UNKNOWN, detail="why"))
    assert compared(short, one) == (True, "It went as the tables told, as far as they tell: why.")


def test_what_caches_decide_is_no_difference() -> None:
    one = request("rules")
    flooded = at(one, Stage.L2_FORWARD, stage=Stage.L2_FLOOD)
    alike, said = compared(one, flooded)
    assert (alike, said.partition(":")[2]) == (True, " docker0 had not learned the MAC and flooded it.")
    neighbor = Hop(0, one.hops[0].netns, "c1", "eth0", 2, Stage.NEIGHBOR)
    assert compared(one, replace(one, hops=(one.hops[0], neighbor, *one.hops[1:]))) == ALIKE


def test_a_replay_says_what_the_run_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = items("one_bridge")
    assert isinstance(run[0], Begin)
    run[0] = replace(run[0], expected=cut(request("one_bridge"), Stage.PREROUTING))
    stream = io.StringIO()
    live = Telling(TextRenderer(Console(file=stream)), verbose=False)
    for item in run:
        live.play(item)
    assert stream.getvalue().count("! Not as the tables told") == 1
    assert main(["replay", str(write(tmp_path / "run.pcapng", run))]) == live.status
    assert capsys.readouterr().out == stream.getvalue()
