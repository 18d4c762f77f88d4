"""The counters of iptables before and after a probe, where rules cannot be traced: in the namespaces that have tables of
iptables-legacy, and in those where nftables' tracing is not to be had.

Nothing is loaded or changed: the tools print the tables that there are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial

from tracer.model.counters import CountedRule, Risen
from tracer.model.topology import Namespace
from tracer.topology.chains import LEGACY
from tracer.topology.netns import in_namespace

TIMEOUT = 2.0  # seconds for one reading
PAUSE = 4  # times what a reading took, until the next probe's: 10,000 rules must not hold up the probes
TOO_SOON = "its counters are not read for so many probes a second"
TOOLS = {"ip": "iptables", "ip6": "ip6tables"}
_POLICY = re.compile(r":(\S+) (\S+) \[(\d+):\d+\]")
_RULE = re.compile(r"\[(\d+):\d+\] (-A (\S+).*)")
_TARGET = re.compile(r" -([jg]) (\S+)")

Reading = tuple[CountedRule, ...]


class Counters:
    """Readings around each probe. A probe's rise may be another packet's, too: what follows from it is journey's to say."""

    def __init__(self) -> None:
        self._watched: dict[int, tuple[str, tuple[tuple[str, bool], ...]]] = {}  # number -> path, (family, legacy)
        self._before: dict[int, Mapping[int, Reading | str]] = {}  # seq -> readings, or why there is none, by number
        self._not_before = 0.0  # monotonic s

    def watch(self, namespace: Namespace, traced: bool) -> None:
        """Read it from now on, if it has tables of iptables-legacy, or of iptables-nft that are not `traced`."""
        chains = namespace.chains or ()
        kinds = dict.fromkeys((c.family, c.legacy) for c in chains if c.family in TOOLS and c.table in LEGACY)
        if kinds and (not traced or any(legacy for _family, legacy in kinds)):
            self._watched[namespace.netns] = namespace.path, tuple(kinds)

    def before(self, seq: int) -> None:
        """A probe is about to be sent."""
        if self._watched:
            soon = time.monotonic() < self._not_before
            self._before[seq] = dict.fromkeys(self._watched, TOO_SOON) if soon else self._read()

    def after(self, seq: int) -> dict[int, Risen]:
        """What rose since before(), by number. A probe's second asking gets nothing."""
        before = self._before.pop(seq, {})
        after = self._read() if any(not isinstance(reading, str) for reading in before.values()) else {}
        return {number: difference(number, reading, after.get(number, "it is gone")) for number, reading in before.items()}

    def _read(self) -> Mapping[int, Reading | str]:
        begun = time.monotonic()
        found = {number: read_rules(*where) for number, where in self._watched.items()}
        now = time.monotonic()
        self._not_before = now + PAUSE * (now - begun)
        return found


def difference(netns: int, before: Reading | str, after: Reading | str) -> Risen:
    """The rules whose counters rose. Nothing is said where the rules changed or were set back to 0 meanwhile."""
    for reading in (before, after):
        if isinstance(reading, str):
            return Risen(netns, unknown=reading)
    assert not isinstance(before, str)
    assert not isinstance(after, str)
    pairs = [(old, new, new.packets - old.packets) for old, new in zip(before, after, strict=False)]
    if len(before) != len(after) or any(replace(old, packets=new.packets) != new or rise < 0 for old, new, rise in pairs):
        return Risen(netns, unknown="its rules changed meanwhile")
    # of a connection's later packets, policies of nat see none
    risen = [replace(new, packets=rise) for _old, new, rise in pairs
             if rise or (new.rule is None and not new.legacy and new.table != "nat")]
    return Risen(netns, tuple(risen), frozenset((row.family, row.table, row.legacy) for row in after))


def parse(family: str, saved: str, legacy: bool = True) -> Reading:
    """What `iptables-save -c` printed: each chain's rules in order, then its policy."""
    found: list[CountedRule] = []
    policies: list[CountedRule] = []
    chains: set[str] = set()
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table, policies, chains = line[1:], [], set()
        elif match := _POLICY.match(line):
            chain, policy, packets = match.groups()
            chains.add(chain)
            if policy != "-":
                policies.append(CountedRule(family, table, chain, None, policy, int(packets), None, legacy))
        elif match := _RULE.match(line):
            # a comment may hold anything, but the target comes behind the matches
            leads, target = ([*_TARGET.findall(re.sub(r'"(\\.|[^"\\])*"', '""', match[2]))] or [(None, None)])[0]
            found.append(CountedRule(family, table, match[3], match[2].rstrip(), target, int(match[1]),
                                     {"j": "jump", "g": "goto"}[leads] if target in chains else None, legacy))
        elif line == "COMMIT":
            found += policies
    return tuple(found)


def read_rules(path: str, kinds: tuple[tuple[str, bool], ...]) -> Reading | str:
    """Of the namespace at `path`, of each (family, legacy); or why they cannot be read."""
    found: Reading = ()
    for family, legacy in kinds:
        tool = _tool(TOOLS[family], legacy)
        if tool is None and legacy:
            return f"{TOOLS[family]}-legacy-save is not installed, which reads its counters"
        if tool is None:
            continue
        try:
            done = in_namespace(path, partial(subprocess.run, (tool, "-c"), text=True, errors="replace", capture_output=True,
                                              timeout=TIMEOUT, stdin=subprocess.DEVNULL))
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"its counters could not be read ({getattr(error, 'strerror', None) or 'no answer in time'})"
        if done.returncode:
            return f"its counters could not be read ({done.stderr.strip() or done.returncode})"
        found += parse(family, done.stdout, legacy)
    return found


@cache
def _tool(name: str, legacy: bool) -> str | None:
    """The program that saves the tables of this backend; before iptables 1.8 there was but one, without a backend's name."""
    path = os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/sbin", "/sbin")))
    if own := shutil.which(f"{name}-{'legacy' if legacy else 'nft'}-save", path=path):
        return own
    plain = shutil.which(f"{name}-save", path=path)
    try:
        said = subprocess.run([plain, "--version"], text=True, capture_output=True, timeout=TIMEOUT).stdout if plain else ""
    except (OSError, subprocess.TimeoutExpired):
        return None
    return plain if said and ("nf_tables" in said) is not legacy else None
