"""Netfilter's hooks as nf_hook_slow() shows them, by a trace of Linux 5.10: `ping c1 c3` in the lab, whose networks are
isolated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tracer.cli.main import main

TRACE = Path(__file__).parent / "traces/whole_hooks.pcapng"


def test_each_hook_has_its_tables_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["replay", str(TRACE), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"nf_hook_slow", "nf_hook_slow%return"} <= set(rows[0]["probes"]["attached"])
    (request,) = [row for row in rows if row.get("direction") == "request"]
    host = [hop for hop in request["hops"] if hop["node"] == "host"]
    # the kernel goes past PREROUTING once more behind the bridge, where br_netfilter has had the packet pass it already
    assert [hop["stage"] for hop in host] == ["ingress", "prerouting", "l2_local", "route", "forward"]
    before, forward = host[1], host[-1]
    assert [table["table"] for table in before["tables"]] == ["nat"]
    assert (before["stopped_at"], before["conntrack"], forward["tables"]) == ([], "NEW", [])
    assert [table["table"] for table in forward["stopped_at"]] == ["filter"]
    assert request["end"]["result"] == "dropped"
