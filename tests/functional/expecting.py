"""The way that `topo --path` tells, and the one that a packet then takes, to be compared."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Run = Callable[..., subprocess.CompletedProcess[str]]
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


def told(run: Run, path: str) -> Row:
    done = run("topo", "--path", path, "--format", "json")
    assert done.returncode in (0, 1), done.stderr
    row: Row = json.loads(done.stdout)
    return row


def seen(run: Run, *args: str) -> Row:
    done = run("ping", *args, "-c", "1", "-W", "0.5", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    row: Row = next(row for row in rows if row["type"] == "journey" and row["kind"] == "request")
    return row


def way(row: Row) -> list[str]:
    """Each hop with its rules; without what decides nothing, and where a probe is not everywhere."""
    return [f"{hop['node']} {hop['device']} {hop['stage']} {hop['role']} {rules(hop)} {change(hop)}" for hop in row["hops"]
            if hop["stage"] not in ("neighbor", "deliver") and not (
                hop["stage"] in HOOKS and hop["node"] != "host" and not hop["rules"])
            # where a program refuses it, the last step up is not seen
            and not (hop["node"] != "host" and (hop["route"] or {}).get("kind") == "local")]


def rules(hop: Row) -> list[str]:
    return [rule["rule"] or f"policy of {rule['chain']}" for rule in hop["rules"]]


def change(hop: Row) -> list[list[Any]]:
    return [hop["rewrite"][name] for name in ("src", "dst", "dport") if hop["rewrite"] and hop["rewrite"][name]]
