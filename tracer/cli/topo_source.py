"""Where the picture comes from: this machine as it is now, or a trace file, which needs neither root nor Docker."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

from tracer.errors import UserError
from tracer.map import findings, passage, picture, routes, rules, tables
from tracer.map.expected import expected as way
from tracer.map.picture import Choice
from tracer.map.view import View
from tracer.model.journey import Journey
from tracer.model.picture import Fact, Picture, Table
from tracer.model.ruleset import Ruleset
from tracer.model.topology import Address, Namespace, Topology

if TYPE_CHECKING:
    from tracer.model.counters import CountedRule
    from tracer.topology.directory import Directory

_PATH = re.compile(r"(?P<source>(?:netns:)?[^:\[\]]+):(?P<goal>\[[^\]]+\]|(?:netns:)?[^:\[\]]+)"
                   r"(?::(?P<port>\d+)(?:/(?P<proto>tcp|udp))?)?")


@dataclass(frozen=True)
class Source:
    topology: Topology
    file: str = ""
    facts: tuple[Fact, ...] = ()  # beside those that the tables tell
    rulesets: Mapping[int, Ruleset] = field(default_factory=dict)  # by namespace; none of a file

    @property
    def host(self) -> Namespace:
        return self.topology.namespaces[self.topology.host]

    def must_have(self, choice: Choice) -> None:
        """UserError where the network has nothing of what was chosen."""
        there, names = picture.known(self.topology, choice)
        if not there:
            what, word = ("network", choice.network) if choice.container is None or choice.container in names else (
                "container or namespace", choice.container)
            listed = ", ".join(names) or "none"
            raise UserError(f'No {what}{f" in {self.file}" if self.file else ""} is called "{word}": there are {listed}.')

    def picture(self, choice: Choice) -> Picture:
        ruleset = self.rulesets.get(self.topology.host)
        drawn = picture.draw(self.topology, choice)
        return replace(drawn, source=self.file, facts=(*drawn.facts, *self.facts),
                       findings=findings.findings(self.topology, ruleset),
                       unchecked=findings.unchecked(self.topology, ruleset))

    def tables(self, name: str, choice: Choice, goal: str | None, start: str | None, path: str | None) -> list[Table]:
        if name == "routes":
            return self._routes(goal, start)
        if name == "rules":
            return self._rules(path)
        made = {"bridges": tables.bridges, "links": tables.links, "neighbors": tables.neighbors}
        return made[name](self.topology, choice)

    def every_table(self, choice: Choice) -> list[Table]:
        """For a page that has all of them."""
        names = ["bridges", "links", "routes", "neighbors", *(["rules"] if self.rulesets else [])]
        start = choice.container if choice.container in {self.topology.node(n) for n in self.topology.namespaces} else None
        return [table for name in names for table in self.tables(name, choice, None, start, None)]

    def space(self, word: str) -> Namespace:
        """The namespace of a container or of this name. UserError if there is none."""
        if word == "host":
            return self.host
        view = View(self.topology)
        bare = word.removeprefix("netns:")
        container = next((c for c in self.topology.containers if c.name == bare), None)
        if container and container.network_mode == "host":
            return self.host
        found = view.space_of(container) if container else next(
            (n for n in self.topology.namespaces.values() if self.topology.node(n.netns) == bare), None)
        if found is None and container:
            raise UserError(f"{word} has no network now ({container.state}): start it with `docker start {word}`.")
        if found is None:
            names = sorted(self.topology.node(n.netns) for n in view.spaces)
            raise UserError(f'No container or namespace is called "{word}": there are {", ".join(names)}.')
        return found

    def _routes(self, goal: str | None, start: str | None) -> list[Table]:
        space = self.space(start) if start else self.host
        address = self._address(goal) if goal is not None else None
        made = routes.routes(self.topology, space, address)
        if address is not None and not self.file:
            from tracer.topology.snapshot import route_get
            answer = route_get(space.path, address)
            link = space.links.get(answer.ifindex or 0) if answer else None
            via = f" via {answer.gateway}" if answer and answer.gateway else ""
            kind = f"{answer.kind} " if answer and answer.kind != "unicast" else ""
            said = f"{kind}{goal}{via} dev {link.name if link else '?'}" if answer else "no route"
            made = [replace(made[0], notes=(*made[0].notes, f"Asked now, the kernel says: {said} (ip route get)."))]
        return made

    def _address(self, word: str) -> Address:
        try:
            return ip_address(word)
        except ValueError:
            raise UserError(f'"{word}" is no IP address: give one as in `--for 172.17.0.2`.') from None

    def expected(self, path: str) -> Journey:
        """The way of a packet by the present tables."""
        self._with_rules()
        return way(self.topology, lambda space: self._rulesets_of([space])[space.netns], self._trip(path))

    def _rules(self, path: str | None) -> list[Table]:
        self._with_rules()
        if path is None:
            ruleset = self.rulesets[self.topology.host]
            return rules.all_rules(self.host, "the host", ruleset, self._owners([ruleset]))
        trip = self._trip(path)
        passed = passage.passage(self.topology, trip, path)
        if passed.problem:
            raise UserError(f"{passed.problem}: `dnettrace topo routes --for {trip.address}` shows why.")
        read = self._rulesets_of(stop.space for stop in passed.stops)
        return rules.met_rules(passed, read, self._owners(list(read.values())))

    def _with_rules(self) -> None:
        if self.file:
            raise UserError(f"{self.file} holds no rules but those that its packets met: `dnettrace replay {self.file} -v` "
                            "shows them.")

    def _rulesets_of(self, spaces: Iterable[Namespace]) -> dict[int, Ruleset]:
        """Those that are read already, and of these namespaces."""
        from tracer.topology.ruleset import read_ruleset

        read = dict(self.rulesets)
        return read | {space.netns: read_ruleset(space) for space in spaces if space.netns not in read}

    def _owners(self, read: list[Ruleset]) -> dict[CountedRule, str]:
        from tracer.journey.owners import owner
        from tracer.model.journey import Rule

        found = {}
        for ruleset in read:
            for rule in ruleset.rules if ruleset.netns == self.topology.host else ():
                verdict = f"{rule.leads} {rule.target}" if rule.leads else (rule.target or "continue").lower()
                whose = owner(Rule(rule.family, rule.table, rule.chain, rule.rule, verdict), self.topology)
                if rule.rule and whose:
                    found[rule] = whose
        return found

    def _trip(self, path: str) -> passage.Trip:
        parts = _PATH.fullmatch(path)
        if parts is None:
            raise UserError(f'"{path}" is no path: give it as in `--path c1:c2:80` or `--path c1:[fd00::2]:53/udp`.')
        start, word = self.space(parts["source"]), parts["goal"].strip("[]")
        port = int(parts["port"]) if parts["port"] else None
        try:
            goal = ip_address(word)
        except ValueError:
            goal = self._best(start, self.space(word))
        return passage.Trip(start, goal, (parts["proto"] or "tcp") if port else None, port)

    def _best(self, start: Namespace, target: Namespace) -> Address:
        """The target's address that shares a subnet with the source; else its first."""
        for version in (4, 6):
            networks = [i.network for _, i in start.addresses(version)]
            found = sorted((i.ip for _, i in target.addresses(version)), key=lambda a: not any(a in n for n in networks))
            if found and networks:
                return found[0]
        raise UserError(f"{self.topology.node(target.netns)} has no IP address that "
                        f"{self.topology.node(start.netns)} could send to: give one.")


def live(*, in_lab: bool) -> Source:
    """This machine, with the host's rules. UserError without root."""
    if os.geteuid() != 0:
        raise UserError("Looking into containers' networks needs root (CAP_SYS_ADMIN): run it with sudo, or give a FILE.")
    from tracer.topology.host import Host
    from tracer.topology.ruleset import read_ruleset

    found = Host.lab() if in_lab else Host.here(os.environ)
    topology = found.everything()
    host = topology.namespaces.get(topology.host)
    if host is None:
        raise UserError("The host's network cannot be read: run it with sudo.")
    facts = () if in_lab else tuple(_engine(found.directory))
    return Source(topology, facts=facts, rulesets={host.netns: read_ruleset(host)})


def _engine(directory: Directory) -> Iterator[Fact]:
    """Without an engine's answer, containers have no names."""
    if directory.engine is None:
        yield Fact("engine", "none is here: only namespaces of /run/netns have names", good=False)
    elif directory.problem:
        yield Fact("engine", f"none answers at {directory.engine.place} ({directory.problem}): only namespaces of "
                   "/run/netns have names", good=False)


def recorded(file: str) -> Source:
    """The network as the last item of the file that tells of it has it. UserError where it is no trace file."""
    from tracer.capture.reader import Reader
    from tracer.cli.replay import opened
    from tracer.model.run import Begin, Know, LiveBegin

    topology: Topology | None = None
    with opened(file) as stream:
        for item in Reader(stream, file, events=False):
            if isinstance(item, Begin | LiveBegin | Know):
                topology = item.topology
    if topology is None or topology.host not in topology.namespaces:
        raise UserError(f"{file} does not hold the host's network.")
    return Source(topology, file)
