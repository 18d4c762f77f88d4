"""What people meet on a Docker bridge, built for real on an engine: who stopped a probe, by which rule, why, and the mend.

The rows S12, S14, S18, S20, S25, S29, S30, S31, S33, S41 of the list are in test_causes.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.functional.conftest import Dnettrace
from tests.functional.engine import Engine
from tests.functional.way import Output, Row, arriving, from_host, leaving, read, switched, to_host

Ping = Callable[..., Output]
WORDS: dict[int, dict[str, str]] = {
    4: {"ipt": "iptables", "family": "ip", "icmp": "icmp", "echo": "-m icmp --icmp-type 8", "out": "203.0.113.1", "six": "",
        "port": "icmp-port-unreachable", "prohibited": "icmp-admin-prohibited", "gate": "172.17.0.1", "bits": "32",
        "host": "198.51.100.2", "nf": "ip"},
    6: {"ipt": "ip6tables", "family": "ip6", "icmp": "ipv6-icmp", "echo": "-m icmp6 --icmpv6-type 128",
        "out": "2001:db8:1::1", "six": "-6", "port": "icmp6-port-unreachable", "prohibited": "icmp6-adm-prohibited",
        "gate": "fd00:17::1", "bits": "128", "host": "2001:db8::2", "nf": "ip6"}}


class World:
    """The engine with what stands for the braces in commands, rules and mends, by IP version."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.words = {version: dict(words) for version, words in WORDS.items()}
        for words in self.words.values():
            words.update(wan=f"nsenter --net={engine.wan_netns}", WAN=f"netns:{engine.name}-wan")
        for name in ("c1", "c2"):
            self.add(name)

    def add(self, name: str, network: str = "bridge") -> None:
        """A container's addresses as {c1}, and {in_c1} to enter it."""
        networks = f'(index .NetworkSettings.Networks "{network}")'
        four, six = self.engine.docker("inspect", "-f", f"{{{{{networks}.IPAddress}}}} {{{{{networks}.GlobalIPv6Address}}}}",
                                       name).split(" ")
        for version, address in ((4, four), (6, six)):
            self.words[version][name] = address
            self.words[version][f"in_{name}"] = f"nsenter --net=/proc/{self.engine.pid(name)}/ns/net"

    def say(self, text: str, version: int) -> str:
        return text.format_map(self.words[version])

    def run(self, commands: str, version: int = 4) -> None:
        """One command a line, at the host."""
        for line in filter(None, map(str.strip, commands.splitlines())):
            done = self.engine.on_host(*shlex.split(self.say(line, version)))
            assert done.returncode == 0, f"{line}: {done.stderr}"

    def load(self, ruleset: str) -> None:
        done = self.engine.on_host("nft", "-f", "-", input=ruleset, stdin=None)
        assert done.returncode == 0, done.stderr

    def saved(self, tool: str = "iptables") -> str:
        return str(self.engine.on_host(f"{tool}-save").stdout)


@pytest.fixture(scope="module")
def engine_world(engine: Engine) -> World:
    return World(engine)


@pytest.fixture
def world(engine_world: World) -> Iterator[World]:
    """With the rules, and the containers', put back afterwards."""
    world = engine_world
    before = {tool: world.saved(tool) for tool in ("iptables", "ip6tables")}
    tables = set(world.engine.on_host("nft", "list", "tables").stdout.splitlines())
    yield world
    for tool, rules in before.items():
        done = world.engine.on_host(f"{tool}-restore", input=rules, stdin=None)
        assert done.returncode == 0, done.stderr
    for line in set(world.engine.on_host("nft", "list", "tables").stdout.splitlines()) - tables:
        world.engine.on_host("nft", "delete", *line.split())
    for name in ("c1", "c2"):
        world.run(f"{{in_{name}}} nft flush ruleset")


@pytest.fixture
def ping(dnettrace: Dnettrace, world: World) -> Ping:
    def call(words: str, version: int = 4, status: int | None = None) -> Output:
        return read(dnettrace("ping", "-W", "1", *world.say(words, version).split(), "-c", "1", "--json",
                              netns=world.engine.host_netns, env=world.engine.env()), status)

    return call


def both(work: Callable[[int], Any], versions: tuple[int, ...] = (4, 6)) -> None:
    """At the same time: one run mostly waits for its answer."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(work, versions))


PUBLISHED = ["{wan} eth0 route", "{wan} eth0 output", "{wan} eth0 postrouting", "{wan} eth0 egress", "host eth0 ingress",
             "host eth0 prerouting", "host docker0 route", "host eth0 forward", "host eth0 postrouting",
             "host docker0 egress nic", "host docker0 l2_forward switch", "host veth>c2 egress", *arriving("c2")]
TO_HOST = [*leaving("{wan}")[:4], "host eth0 ingress", "host eth0 prerouting", "host - route", "host eth0 input"]
OUT = [*to_host("c1")[:7], "host eth0 route", "host docker0 forward", "host docker0 postrouting", "host eth0 egress"]
WAYS = {"c1 c2": switched("c1", "c2"), "c1 out": OUT, "c1 host": to_host("c1"), "host c2": from_host("c2"),
        "wan c2": PUBLISHED, "wan host": TO_HOST, "c1 itself": leaving("c1")}


def path(output: Output, world: World, way: str, kind: str = "request") -> None:
    """All hops are shown up to the one at which it ended."""
    found = output.way(output.only(kind))
    whole = [hop.format(wan=world.words[4]["WAN"][6:]) for hop in WAYS[way]]
    assert found == whole[:len(found)]


@dataclass(frozen=True)
class Fault:
    """A rule that somebody has added, or a policy."""

    build: str
    ping: str
    way: str
    at: tuple[str, str]  # node, stage
    cause: str  # the likeliest, and those behind it
    mend: str | None = "{delete}"  # None: the owner's affair, or words
    then: bool = True  # running the mend mends it
    table: str = ""
    owner: str | None = None
    versions: tuple[int, ...] = (4, 6)
    answered: str = ""  # state of the probe where the refusal is an answer

    def rule(self, world: World, version: int) -> tuple[str, str, str, str | None, str, bool]:
        """(family, table, chain, text, verdict, by the policy), of the last command."""
        words = shlex.split(world.say(self.build.strip().splitlines()[-1], version))
        words = words[words.index(world.words[version]["ipt"]):]
        table = words[words.index("-t") + 1] if "-t" in words else "filter"
        at = next(at for at, word in enumerate(words) if word in ("-P", "-I", "-A"))
        if words[at] == "-P":
            return world.words[version]["family"], table, words[at + 1], None, "drop", True
        text = shlex.join(["-A", *words[at + 1:]]).replace("'!'", "!").replace("'", '"')
        return (world.words[version]["family"], table, words[at + 1], text, "reject" if "REJECT" in words else "drop", False)


ROUTED = ("c1 {out}", "c1 out", ("host", "forward"))
OPEN = "firewall_rule"
FAULTS = {
    "S01 the policy of FORWARD": Fault(
        "{ipt} -F FORWARD\n{ipt} -A FORWARD -j DOCKER\n{ipt} -P FORWARD DROP", *ROUTED, "chain_policy",
        "{ipt} -I FORWARD -i docker0 -o eth0 -j ACCEPT", then=False),
    "raw PREROUTING": Fault("{ipt} -t raw -I PREROUTING -i docker0 -p {icmp} {echo} -j DROP", "c1 {out}", "c1 out",
                            ("host", "prerouting"), OPEN),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_rule_that_stops_it(what: str, world: World, ping: Ping) -> None:
    fault = FAULTS[what]
    for version in fault.versions:
        world.run(fault.build, version)

    def see(version: int) -> None:
        output = ping(f"{fault.ping} {{six}}", version)
        end = output.only("request")["end"]
        family, table, chain, text, verdict, policy = fault.rule(world, version)
        found = end["rule"]
        assert found, end
        assert (end["result"], end["node"], end["stage"]) == ("dropped", *fault.at)
        assert (found["family"], found["table"], found["chain"], found["rule"], found["verdict"], found["policy"],
                found["exact"], found["by"]) == (family, table, chain, text, verdict, policy, True, "trace")
        assert found["owner"] == fault.owner
        assert [c["name"] for c in end["causes"]] == fault.cause.split()
        path(output, world, fault.way)
        if fault.mend is None:
            return
        tool = world.words[version]["ipt"]
        mend = fault.mend.replace("{delete}", f"{tool} -t {table} -D {(text or '')[3:]}")
        assert end["mend"] == world.say(mend, version)
        if fault.then:
            world.run(end["mend"], version)
            after = ping(f"{fault.ping} {{six}}", version, 0).only("request")["end"]
            assert (after["result"] in ("delivered", "left"), after["causes"]) == (True, [])

    both(see, fault.versions)
