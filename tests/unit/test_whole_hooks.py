"""Netfilter's hooks as nf_hook_slow() shows them, by traces of Linux 5.10: `ping c1 c3` in the lab, whose networks are
isolated, and `ping c1 203.0.113.1`, which MASQUERADE translates; and by one of 6.1, where iptables-legacy drops that."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trace import plain, write
from tracer.capture.reader import Reader
from tracer.cli.main import main
from tracer.model.layout import HOOK_BEGINS, HOOK_ENDS, HOOK_TABLE, Event, Place
from tracer.model.probes import Batch

MISSED = "its end was not seen: a rule queued the packet, or its event was missed"
TRACES = Path(__file__).parent / "traces"


def replayed(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The request."""
    main(["replay", str(path), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"nf_hook_slow", "nf_hook_slow%return"} <= set(rows[0]["probes"]["attached"])
    (request,) = [row for row in rows if row.get("direction") == "request"]
    return dict(request)


def names(tables: list[dict[str, Any]]) -> list[str]:
    return [table["table"] for table in tables]


def test_each_hook_has_its_tables_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    request = replayed(TRACES / "whole_hooks.pcapng", capsys)
    host = [hop for hop in request["hops"] if hop["node"] == "host"]
    # the kernel goes past PREROUTING once more behind the bridge, where br_netfilter has had the packet pass it already
    assert [hop["stage"] for hop in host] == ["ingress", "prerouting", "l2_local", "route", "forward"]
    before, forward = host[1], host[-1]
    assert (names(before["tables"]), before["stopped_at"], before["conntrack"]) == (["nat"], [], "NEW")
    assert (forward["tables"], names(forward["stopped_at"])) == ([], ["filter"])
    assert request["end"]["result"] == "dropped"


def test_a_hook_shows_what_it_rewrote(capsys: pytest.CaptureFixture[str]) -> None:
    request = replayed(TRACES / "whole_hooks_nat.pcapng", capsys)
    (hop,) = [hop for hop in request["hops"] if hop["rewrite"]]
    assert (hop["stage"], names(hop["tables"])) == ("postrouting", ["nat"])
    assert hop["rewrite"]["src"] == ["172.17.0.2", "198.51.100.2"]


def test_tables_of_iptables_legacy_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    hops = {hop["stage"]: hop for hop in replayed(TRACES / "whole_hooks_legacy.pcapng", capsys)["hops"]
            if hop["node"] == "host"}
    prerouting, forward = hops["prerouting"], hops["forward"]
    assert (names(prerouting["tables"]), prerouting["conntrack"]) == (["raw", "mangle", "nat"], "NEW")
    assert (forward["tables"], names(forward["stopped_at"])) == ([], ["mangle"])


def test_behind_a_table_that_is_told_with_others_nothing_is_unknown(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def behind_raw(events: list[Event]) -> list[Event]:
        found = [(at, event) for at, event in enumerate(events) if (event.place, event.slot) == (Place.HOOK, HOOK_BEGINS)]
        for at, event in reversed(found):
            events.insert(at + 1, event._replace(slot=HOOK_TABLE, first=0))
        return events

    hops = replayed(changed(tmp_path, behind_raw), capsys)["hops"]
    assert names(next(hop for hop in hops if (hop["node"], hop["stage"]) == ("host", "prerouting"))["tables"]) == ["nat"]


def changed(tmp_path: Path, change: Callable[[list[Event]], list[Event]]) -> Path:
    """The first of the traces, with other events of the request."""
    with (TRACES / "whole_hooks.pcapng").open("rb") as stream:
        items = plain(Reader(stream, "run"))
    for at, item in enumerate(items):
        if isinstance(item, Batch) and any(event.place == Place.HOOK for event in item.events):
            items[at] = replace(item, events=change(item.events))
    return write(tmp_path / "changed.pcapng", items)


def test_a_drop_in_a_bridge_is_not_behind_the_hook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `--icc=false` does it: br_netfilter's FORWARD, inside the bridge's."""
    def in_the_bridge(events: list[Event]) -> list[Event]:
        return [event._replace(stack=("nf_hook_slow", "br_nf_forward_ip", "nf_hook_slow", "__br_forward", "br_forward"))
                if event.place == Place.DROP else event for event in events]

    forward = replayed(changed(tmp_path, in_the_bridge), capsys)["hops"][-1]
    assert (forward["stage"], names(forward["stopped_at"])) == ("forward", ["filter"])


def test_an_end_that_was_lost_is_no_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def without_end(events: list[Event]) -> list[Event]:
        return [event for event in events if (event.place, event.slot, event.hook) != (Place.HOOK, HOOK_ENDS, 0)]

    hops = replayed(changed(tmp_path, without_end), capsys)["hops"]
    (hop,) = [hop for hop in hops if hop["stage"] == "prerouting"]
    assert (hop["tables"], hop["stopped_at"]) == ([], [])
    assert hop["detail"] == MISSED


def test_only_right_behind_a_bridge_a_hook_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Elsewhere it was met once more, whatever became of it there."""
    def not_handed_up(events: list[Event]) -> list[Event]:
        return [event for event in events if (event.place, event.name[:8]) != (Place.RECEIVE, b"docker0\0")]

    hops = replayed(changed(tmp_path, not_handed_up), capsys)["hops"]
    assert [hop["detail"] == MISSED for hop in hops if hop["stage"] == "prerouting"] == [False, True]


def test_a_drop_elsewhere_is_not_at_the_hook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel with few CPUs misses returns."""
    def in_a_socket(events: list[Event]) -> list[Event]:
        outer = ("nf_hook_slow", "ip_rcv", "netif_receive_skb")
        return [event._replace(stack=("kfree_skb", "udp_queue_rcv_one_skb", *["ip_local_deliver_finish"] * 8, *outer))
                if event.place == Place.DROP else event for event in events]

    forward = replayed(changed(tmp_path, in_a_socket), capsys)["hops"][-1]
    assert (forward["stopped_at"], forward["detail"]) == ([], f"to br-6c6162776562, {MISSED}")
