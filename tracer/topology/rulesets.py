"""The text of nftables rules: as iptables-save writes it where iptables made the table, else as nft does.

A table is read when first one of its rules is named, once, and again only for a rule that it did not have. A handle names
one rule as long as its table lives: where the table is still the one that was there when tracing was armed, a text is the
rule's own however much else has changed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tracer.model.probes import Batch, Trace
from tracer.model.topology import IPTABLES_TABLES, Namespace
from tracer.topology.netns import here, in_namespace
from tracer.topology.nfnetlink import GETRULE, GETTABLE, Connection, text, word

IPTABLES = {"ip": ("iptables-nft-save", "iptables-save"), "ip6": ("ip6tables-nft-save", "ip6tables-save")}
FOLDERS = "/usr/sbin:/usr/bin:/sbin:/bin"  # where a shell without root's PATH does not look
SECONDS = 10
NO_LISTING = "its text needs nft, which is not there or may not read the table"

Key = tuple[str, int]  # chain, handle


@dataclass(slots=True)
class _Table:
    """A table's rules as they were read."""

    handle: int | None = None  # its own
    rules: dict[Key, str] = field(default_factory=dict)
    asked: set[Key] = field(default_factory=set)  # rules that it was read anew for
    why: str | None = None  # it could not be read


class Rulesets:
    """Texts of rules in any namespace. Never raises: why a text is missing is with it."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, str, str, str], _Table] = {}

    def named(self, batch: Batch, namespaces: Mapping[int, Namespace]) -> Batch:
        """The batch, its messages with their rules' texts. `namespaces`: by number."""
        if not batch.traces:
            return batch
        paths = {number: namespace.path for number, namespace in namespaces.items()}
        return replace(batch, traces=tuple(self._named(trace, paths) for trace in batch.traces))

    def _named(self, trace: Trace, paths: Mapping[int, str]) -> Trace:
        if trace.kind != "rule" or trace.handle is None:
            return trace
        path, key = paths.get(trace.netns, ""), (trace.chain, trace.handle)
        place = trace.netns, path, trace.family, trace.table
        table = self._tables.get(place)
        if table is None or ((key not in table.rules or table.handle != trace.table_handle) and key not in table.asked):
            asked = table.asked if table else set()
            table = self._tables[place] = _read(trace, path)
            table.asked = asked | {key}
        if table.why:
            return replace(trace, unsure=table.why)
        if key not in table.rules:
            return replace(trace, unsure="the rule was deleted before its text could be read")
        made_anew = table.handle != trace.table_handle
        return replace(trace, text=table.rules[key], unsure="the table was made anew meanwhile: this is its text of now"
                       if made_anew else None)


def _read(trace: Trace, path: str) -> _Table:
    """The message's table, in the namespace at `path`."""
    def read() -> _Table:
        if here() != trace.netns:
            raise OSError(errno.ESTALE, "its process ended")
        return _read_here(trace.family, trace.table)

    try:
        return in_namespace(path, read)
    except OSError as error:
        return _Table(why=f"the ruleset could not be read: {error.strerror or error}")


def _read_here(family: str, name: str) -> _Table:
    connection = Connection()
    try:
        handle = next((int.from_bytes(row.get(4, b""), "big") for found, row in connection.dump(GETTABLE, "")
                       if (found, word(row.get(1))) == (family, name)), None)
        handles = _handles(connection, family, name)
        why = ""
        if family in IPTABLES and name in IPTABLES_TABLES:
            saved = _iptables(family, name)
            # unequal: rules came or went between the two readings, or iptables hides some
            if saved and {chain: len(rules) for chain, rules in saved.items()} == {c: len(h) for c, h in handles.items()} \
                    and _handles(connection, family, name) == handles:
                return _Table(handle, {(chain, number): rule for chain, rules in saved.items()
                                       for number, rule in zip(handles[chain], rules, strict=True)})
            why = "" if saved is None else "; iptables-save and nft do not agree on the table"
    finally:
        connection.close()
    said = nft_listing(family, name)
    if said is None:
        return _Table(handle, why=NO_LISTING + why)
    return _Table(handle, nft_rules(said))


def _handles(connection: Connection, family: str, name: str) -> dict[str, list[int]]:
    """Of each chain that has rules, their handles in order. Attributes: NFTA_RULE_TABLE, CHAIN, HANDLE."""
    found: dict[str, list[int]] = {}
    for _family, row in connection.dump(GETRULE, family, text(1, name)):
        if word(row.get(1)) == name:  # a kernel before 4.18 does not filter
            found.setdefault(word(row.get(2)), []).append(int.from_bytes(row.get(3, b""), "big"))
    return found


def _iptables(family: str, name: str) -> dict[str, list[str]] | None:
    """Each chain's rules in the words of iptables; None where it does not take the table for its own."""
    for tool in IPTABLES[family]:
        if "-nft-" not in tool and "(nf_tables)" not in (run(tool, "-V") or ""):
            continue  # iptables-legacy would make the tables that it is asked for
        lines = (run(tool, "-t", name) or "").splitlines()
        if f"*{name}" not in lines:
            continue
        if any((line.startswith("#") and "incompatible" in line) or "[unsupported revision]" in line for line in lines):
            return None
        found: dict[str, list[str]] = {}
        for line in lines:
            if line.startswith("-A "):
                found.setdefault(line.split(" ", 2)[1], []).append(line)
        return found
    return None


def nft_listing(family: str, name: str, *, elements: bool = False) -> str | None:
    """A table of the calling thread's network namespace in the words of nft, without counts; with the `elements` of its sets
    and maps."""
    return run("nft", "-a", "-s", *(() if elements else ("-t",)), "list", "table", family, name)


def nft_rules(said: str) -> dict[Key, str]:
    """Its rules, each chain's in order."""
    rules: dict[Key, str] = {}
    chain = ""
    parts: list[str] = []
    for line in said.splitlines():
        if opened := re.match(r"\tchain (\S+) \{", line):
            chain, parts = opened[1], []
        elif line.startswith("\t\t") and chain:  # a long set goes on in the next line
            whole = re.fullmatch(r"\s*(.*) # handle (\d+)", line)
            parts.append(whole[1] if whole else line.strip())
            if whole:
                rules[chain, int(whole[2])] = " ".join(parts)
            if whole or re.match(r"\t\t(type \S+ hook|policy|comment) ", line):
                parts = []
        else:
            chain = "" if line == "\t}" else chain
    return rules


def run(*command: str) -> str | None:
    """What it prints; None where it is not installed, fails, or takes too long."""
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:{FOLDERS}")
    if program is None:
        return None
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, stdin=subprocess.DEVNULL, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
