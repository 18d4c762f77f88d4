"""The lines of live traffic to the character, and the status line as a terminal has it."""

# ruff: noqa: E501  # lines in a pipe are as long as they need to be

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.unit import recording, test_render_fixtures as given
from tests.unit.test_render_text import WIDTHS, Stream, shown
from tracer.journey.flows import Flows
from tracer.model.journey import Cause, Journey, Packet, Rule
from tracer.model.probes import Missing
from tracer.model.report import FlowSummary, LiveStart, LiveStatus, LiveSummary, OneWay, Seen
from tracer.render.json_lines import LiveJsonRenderer
from tracer.render.line import Lines, packet_name
from tracer.render.live import LiveRenderer

START = LiveStart("0.1.0", "6.12.0", "tcp port 80", missing=(Missing("netfilter", "no netfilter links here"),),
                  notes=("c9 appeared.",))
STATUS = LiveStatus(12.0, 12345, 12300, 3, 1042.4, talkers=(("c1 → c2:80", 9000), ("c3 → host", 40)))
RULED = replace(given.DROPPED, end=given.DROPPED.end._replace(
    rule=Rule("ip", "filter", "DOCKER-USER", "-A DOCKER-USER -s 172.17.0.2/32 -j DROP", "drop"),
    causes=(Cause("rule", "A rule in DOCKER-USER drops it.", mend="iptables -D DOCKER-USER 1"),)))


class Screen(Stream):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def console(width: int | None, stream: Stream, color: Any = None, **environment: str) -> Console:
    return Console(file=stream, width=width, height=25, force_terminal=width is not None or None, color_system=color,
                   _environ=environment)


def line(journey: Journey, width: int | None = None, copies: tuple[Journey, ...] = ()) -> str:
    return Lines(console(width, Stream())).of(journey, copies)


def run(width: int | None) -> str:
    """Recorded journeys, and those that were made by hand."""
    made = Lines(console(width, Stream()))
    said = []
    for name in ("one_bridge", "outside", "published", "isolated", "rules_isolated", "nobody", "ttl", "one_bridge_v6"):
        recorded = recording.load(name)
        said += [f"# {name}\n", *(recorded.steady(made.of(journey)) for journey in recorded.journeys())]
    said.append("# by hand\n")
    said += [made.of(given.REQUEST, given.FLOOD), *map(made.of, (RULED, given.UNKNOWN, given.MASQUERADED, given.HOSTILE))]
    return "".join(said) + ended(width, "published", "outside") + ended(width, "one_bridge", verbose=True)


def ended(width: int | None, *names: str, verbose: bool = False) -> str:
    """The summary of recorded journeys."""
    flows, devices = Flows(), {}
    for name in names:
        recorded = recording.load(name)
        devices |= recorded.names
        for journey in recorded.journeys():
            flows.add(journey)
    live = LiveRenderer(console(width, stream := Stream()), verbose)
    live.summary(replace(flows.summary(), seconds=12.04, events=300, lost={"kfree_skb": 3}, share=1 / 8))
    text = stream.getvalue()
    for device, steady in devices.items():
        text = text.replace(device, steady.ljust(len(device)))
    return "\n".join(line.rstrip() for line in text.split("\n"))


def screen(width: int | None) -> Path:
    return Path(__file__).parent / "screens" / f"live-{width or 'pipe'}.txt"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", time.gmtime)


@pytest.mark.parametrize("width", WIDTHS)
def test_to_the_character(width: int | None) -> None:
    """After a change of words, `python -m tests.unit.test_render_live` writes the screens anew: read the difference."""
    assert run(width) == screen(width).read_text()


def test_what_does_not_fit_is_left_out_and_what_matters_never() -> None:
    assert line(given.REQUEST).startswith("22:13:20.000000 c1 → c2 echo request  eth0 ▸ vethf60c6b4 ▸ docker0(switch) ▸")
    assert "22:13:20" not in line(given.REQUEST, 99)
    for width in (40, 60, 80, 100, 160):
        for each in (given.REQUEST, given.MASQUERADED, given.UNKNOWN, RULED):
            text = line(each, width)
            assert all(word in text for word in ("c1 → ", "echo request", line(each).split("  ")[2].split()[0]))
    assert line(RULED, 60).splitlines() == [
        "c1 → c2 echo request  eth0 ▸ vethf60c6b4 ▸ docker0",
        "  ✗ dropped at filter/DOCKER-USER by rule",
        "  -A DOCKER-USER -s 172.17.0.2/32 -j DROP",
        "  cause: A rule in DOCKER-USER drops it.  mend: iptables -D DOCKER-USER 1"]


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_journey_that_arrived_takes_one_line_of_the_terminal(width: int) -> None:
    assert line(given.REQUEST, width).count("\n") == 1
    assert cell_len(line(given.REQUEST, width).rstrip()) <= width


@pytest.mark.parametrize(("packet", "name"), [
    (Packet(4, "tcp", "a", "b", 60, 40000, 80, "SYN", payload=0), "SYN"),
    (Packet(4, "tcp", "a", "b", 1500, 40000, 80, "PSH ACK", payload=1448), "1448 B"),
    (Packet(4, "tcp", "a", "b", 64, 40000, 80, "FIN PSH ACK", payload=12), "FIN 12 B"),
    (Packet(4, "tcp", "a", "b", 52, 40000, 80, "ACK", payload=0), "ACK"),
    (Packet(4, "tcp", "a", "b", 28, 40000, 80), "TCP 28 B"),
    (Packet(4, "udp", "a", "b", 92, 40000, 53, payload=64), "UDP 64 B"),
    (Packet(0, "arp", "a", "b", 28, arp_op=1, asked="172.17.0.3"), "ARP who-has 172.17.0.3"),
    (Packet(0, "arp", "a", "b", 28, arp_op=2, asked="172.17.0.3", told="02:42:ac:11:00:03"),
     "ARP 172.17.0.3 is-at 02:42:ac:11:00:03"),
    (Packet(4, "132", "a", "b", 300), "protocol 132 300 B"),
    (Packet(4, "icmp", "a", "b", 84, icmp_type=8), "echo request"),
    (Packet(4, "icmp", "a", "b", 84, icmp_type=3, icmp_code=3, quoted=Packet(4, "udp", "b", "fd00::3", 60, 4000, 53)),
     "ICMP error: port unreachable (about UDP to [fd00::3]:53)"),
])
def test_names_of_packets(packet: Packet, name: str) -> None:
    assert packet_name(packet) == name


def test_the_port_of_the_side_that_serves() -> None:
    syn = replace(given.REQUEST, packet=Packet(4, "tcp", "172.17.0.2", "172.17.0.3", 60, 40000, 80, "SYN", payload=0))
    assert " c1 → c2:80 SYN  " in line(syn)
    assert " c2:80 → c1 SYN ACK  " in line(replace(syn, kind="reply", source="c2", target="c1", packet=syn.packet._replace(
        sport=80, dport=40000, tcp_flags="SYN ACK")))
    assert " [fd00::2]:53 → c2 " in line(replace(syn, kind="packet", source="fd00::2", packet=syn.packet._replace(
        sport=53, dport=40000)))


def test_text_from_outside_is_spelled_out() -> None:
    assert r" c\x1b[31m1 → [red]c2[/red] echo request  e\u202eth  " in line(given.HOSTILE)


def test_colours_for_terminals_that_have_them() -> None:
    coloured = Lines(console(160, Stream(), "standard")).of(RULED)
    assert "\x1b[1;31m✗ dropped" in coloured
    assert "\x1b[36mswitch\x1b[0m" in Lines(console(160, Stream(), "standard")).of(given.REQUEST)
    assert "\x1b[3" not in Lines(console(160, Stream(), NO_COLOR="1", TERM="xterm")).of(RULED)
    assert "\x1b" not in Lines(console(160, Stream(), TERM="dumb")).of(RULED)
    assert "\x1b" not in line(RULED)
    assert "c1 -> c2 echo request  eth0 > veth" in Lines(console(None, Stream("ascii"))).of(given.REQUEST)


def test_the_status_line_stays_below_the_lines() -> None:
    stream = Screen()
    live = LiveRenderer(console(80, stream))
    live.status(STATUS)
    live.journey(given.REQUEST)
    live.close()
    live.close()
    status = "1,042/s · 3 dropped · 12,345 journeys · c1 → c2:80 9,000 · c3 → host 40"
    assert stream.getvalue() == f"\r\x1b[2K{status}\r\x1b[2K{line(given.REQUEST, 80)}{status}\r\x1b[2K"


def test_the_status_line_fits_and_says_losses_first() -> None:
    stream = Screen()
    live = LiveRenderer(console(60, stream))
    live.status(replace(STATUS, lost={"kfree_skb": 20, "netfilter": 100}, share=1 / 8))
    assert stream.getvalue() == "\r\x1b[2K1,042/s · 3 dropped"
    live = LiveRenderer(console(120, stream := Screen()))
    live.status(replace(STATUS, lost={"kfree_skb": 20, "netfilter": 100}, share=1 / 8))
    assert stream.getvalue() == ("\r\x1b[2K1,042/s · 3 dropped · lost 120 events (netfilter 100, kfree_skb 20) · 1 new journey in 8 "
                                 "followed · 12,345 journeys")


@pytest.mark.parametrize("made", [console(None, Stream()), console(80, Screen(), TERM="dumb"), console(80, Stream())])
def test_no_status_line_where_it_could_not_be_wiped(made: Console) -> None:
    live = LiveRenderer(made)
    live.status(STATUS)
    live.journey(given.REQUEST)
    live.close()
    text = made.file.getvalue()  # type: ignore[attr-defined]
    assert "\r" not in text
    assert "1,042/s" not in text


def test_all_hops_as_elsewhere() -> None:
    stream = Stream()
    LiveRenderer(console(80, stream), verbose=True).journey(given.REQUEST, given.FLOOD)
    assert stream.getvalue().splitlines() == shown(given.REQUEST, 80, True, given.FLOOD)
    screen = Screen()
    live = LiveRenderer(console(80, screen), verbose=True)
    live.status(STATUS)
    before = screen.getvalue()
    live.journey(given.REQUEST, given.FLOOD)
    wiped = "\r\x1b[2K"
    assert screen.getvalue() == f"{before}{wiped}{stream.getvalue()}{before}"


def test_what_is_said_before_and_besides() -> None:
    live = LiveRenderer(console(None, stream := Stream()))
    live.header(START)
    live.warning("a \x1b[31mname")
    live.note("c8 is gone.")
    assert stream.getvalue().splitlines() == [
        "following tcp port 80", "! not observed here: netfilter (no netfilter links here)", "c9 appeared.",
        "! a \\x1b[31mname", "c8 is gone."]
    live.header(replace(START, following=""))
    assert "following every packet\n" in stream.getvalue()


@pytest.mark.parametrize(("seen", "said"), [
    (Seen(0), "no packet passed the probes"),
    (Seen(1, {"UDP a → b": 1}), "1 packet passed, UDP a → b"),
    (Seen(41233, {"ARP": 3, "UDP 172.17.0.2 → 172.17.0.3:5201": 41230}),
     "41,233 packets passed, most of them UDP 172.17.0.2 → 172.17.0.3:5201"),
    (Seen(4000, {"ARP": 1000, "UDP a → b": 1001}), "4,000 packets passed, the most frequent UDP a → b (1,001), ARP (1,000)"),
])
def test_silence(seen: Seen, said: str) -> None:
    LiveRenderer(console(None, stream := Stream())).silence(3, seen)
    assert stream.getvalue() == f"! nothing matched in 3 s: {said}\n"


def test_a_conclusion_is_marked_and_the_mark_explained_once() -> None:
    live = LiveRenderer(console(None, stream := Stream()))
    live.journey(given.MASQUERADED)
    live.journey(given.MASQUERADED)
    assert "▸ ~docker0(nic) ▸ " in stream.getvalue()
    assert stream.getvalue().count("~ not seen itself") == 1


def test_a_terminal_that_is_gone_does_not_hide_why() -> None:
    live = LiveRenderer(console(80, stream := Screen()))
    live.status(STATUS)
    stream.close()
    live.close()


def test_flows_are_told_apart_and_their_directions_put_together() -> None:
    def flows(name: str) -> list[tuple[str, int | None]]:
        live = LiveJsonRenderer(stream := Stream())
        for journey in recording.load(name).journeys():
            live.journey(journey)
        return [(each["kind"], each["flow"]) for each in map(json.loads, stream.getvalue().splitlines())]
    for name in ("outside", "published", "one_bridge_v6"):
        said = flows(name)
        assert len({flow for kind, flow in said if kind in ("request", "reply")}) == 1
        assert {flow for kind, flow in said if kind == "arp"} == {None}
    assert dict(flows("outside"))["request"] != dict(flows("published"))["request"]
    told = [flow for kind, flow in flows("ttl") if kind in ("request", "error")]
    assert len(told) == 2
    assert len(set(told)) == 1


BUSY = FlowSummary("c1 → c2:80", "c1", "c2", 80, "tcp", 1_234_567, 123_456_789, 123_456_000, {"NO_SOCKET": 789}, {}, {}, 3,
                   OneWay(1, 1), OneWay(0, 0))
ENDED = LiveSummary(123_456_790, 123_456_001, {"NO_SOCKET": 789}, {"delivered": 123_456_001, "dropped": 789},
                    {f"br-{n}": ("switch",) for n in range(5)}, 0, (BUSY,), 1, 1, seconds=3600)


def test_numbers_of_a_long_run_stay_apart() -> None:
    live = LiveRenderer(console(None, stream := Stream()))
    live.summary(ENDED)
    assert stream.getvalue().splitlines() == [
        "", "123,456,790 journeys in 3600.0 s: 123,456,001 delivered, 789 dropped (789 NO_SOCKET). Bridges: br-0 (switch), br-1 "
        "(switch), br-2 (switch), br-3 (switch), br-4 (switch).",
        "", "flow                conns     journeys    delivered  dropped  median  p99",
        "tcp c1 → c2:80  1,234,567  123,456,789  123,456,000      789",
        "  ✗ 789 NO_SOCKET", "  ! 3 may lack a hop", "and 1 journey of other flows, 1 dropped"]


def test_a_run_without_a_journey_ends_in_a_sentence() -> None:
    live = LiveRenderer(console(80, stream := Screen()))
    live.status(STATUS)
    live.summary(LiveSummary(0, 0, {}, {}, {}, 0, (), seconds=2))
    assert stream.getvalue().endswith("\r\x1b[2K\n0 journeys in 2.0 s.\n")


def test_objects() -> None:
    stream = Stream()
    live = LiveJsonRenderer(stream)
    live.header(START)
    live.journey(given.REQUEST, given.FLOOD[:2])
    live.silence(3, Seen(2, {"ARP": 2}))
    for seconds, lost, share in ((1, {}, 1.0), (2, {"kfree_skb": 1}, 1.0), (2.5, {"kfree_skb": 2}, 1.0),
                                 (3, {"kfree_skb": 2}, 1.0), (4, {"kfree_skb": 2}, 1.0), (4.5, {"kfree_skb": 2}, 0.5)):
        live.status(replace(STATUS, seconds=seconds, lost=lost, share=share))
    live.summary(ENDED)
    live.close()
    said = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert [each["type"] for each in said] == ["start", *["journey"] * 3, "silence", *["status"] * 3, "summary"]
    assert said[0]["following"] == "tcp port 80"
    assert said[5] == {"type": "status", "seconds": 2, "journeys": 12345, "delivered": 12300, "dropped": 3, "rate": 1042.4,
                       "lost": {"kfree_skb": 1}, "share": 1.0,
                       "talkers": [{"flow": "c1 → c2:80", "journeys": 9000}, {"flow": "c3 → host", "journeys": 40}]}
    assert [each["seconds"] for each in said[5:8]] == [2, 3, 4.5]
    assert (said[8]["drops"], said[8]["flows"][0]["service"], said[8]["flows"][0]["reply"]["steps"]) == (
        {"NO_SOCKET": 789}, "c2", [])


if __name__ == "__main__":
    time.localtime = time.gmtime
    for each in WIDTHS:
        screen(each).write_text(run(each))
