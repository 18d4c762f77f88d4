"""The host as the command sees it: the words that a user types, resolved; and its network as it is now."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address

from tracer.errors import UserError
from tracer.model.topology import Address, Container, Namespace, Network, Topology
from tracer.topology import lab
from tracer.topology.directory import Claim, Directory, container_path
from tracer.topology.engine import SOCKETS, Engine, find_engine
from tracer.topology.netns import identify, named
from tracer.topology.place import Destination, Place, candidates, no_address

# (source, hostname, IP version) -> its address as the source resolves it; UserError or OSError if it does not.
Resolver = Callable[[Place, str, int | None], Address]


class Host:
    def __init__(self, path: str, engine: Engine | None, names: Callable[[], Mapping[str, str]], where: str = ""):
        """`path` opens the namespace that is called `host`; `names` lists the named ones (name -> path)."""
        self._where = where  # " of the lab" where the lab's names are all there are
        self.directory = Directory(engine, names)
        self.place = Place("host", "host", self._identify(path), path)
        self.directory.learn(path, "host", Claim.TYPED)
        self._places = {self.place.netns: self.place}  # every place that was asked for, by number

    @classmethod
    def here(cls, environ: Mapping[str, str]) -> Host:
        """The namespace that the command runs in, with the engine that the environment names or that runs here."""
        return cls(f"/proc/{os.getpid()}/ns/net", find_engine(environ), named)

    @classmethod
    def lab(cls) -> Host:
        """The built-in lab: its host, and no names but its own. UserError if it is not up."""
        if not lab.status().up:
            raise UserError("The lab is not up: start it with `sudo dnettrace lab up`.")
        return cls(lab.path("host"), None, lab.named, where=" of the lab")

    # -- words ---------------------------------------------------------------------------------------------------

    def find(self, word: str) -> Place:
        """`host`, a container's name or id, `netns:NAME`, `pid:N`, a named namespace's bare name. UserError if none."""
        place = self._look_up(word)
        if place is None:
            raise self._unknown(word)
        return place

    def destination(self, word: str, source: Place, version: int | None = None,
                    resolve: Resolver | None = None) -> Destination:
        """Where a packet from `source` to `word` goes: what find() takes, an IP address, or a name to resolve there.

        `version` (4 or 6) forces the IP version. UserError, also where the source and the destination are the same.
        """
        try:
            return self._literal(ip_address(word), source, version)
        except ValueError:
            place = self._look_up(word)
        if place is None:
            return self._resolved(word, source, version, resolve)
        if place.netns == source.netns:
            same = f"the same ({word})" if word == source.word else f"one network namespace ({source.word} = {word})"
            raise UserError(f"Source and destination are {same}: to follow a packet inside it, give an address, "
                            f"`dnettrace ping {source.word} 127.0.0.1`.")
        here, there = self._read(source), self._read(place)
        found = candidates(here, there, version)
        if not found:
            raise no_address(source, here, place, there, version, self.directory.client)
        return Destination(self._reachable(source, here, found), place, place.name, place.notes)

    def _look_up(self, word: str) -> Place | None:
        if word == "host":
            return self.place
        scheme, _, rest = word.partition(":")
        if scheme == "netns" and rest:
            path = self.directory.named_namespaces().get(rest)
            return self._place(word, rest, path) if path else None
        if scheme == "pid" and rest:
            if not rest.isdecimal() or not os.path.exists(f"/proc/{int(rest)}"):
                raise UserError(f'There is no process "{rest}": give the id of a running one, as `ps -e` shows it.')
            return self._place(word, word, f"/proc/{int(rest)}/ns/net")
        container = self.directory.container(word)
        if container:
            return self._container(word, container)
        path = self.directory.named_namespaces().get(word)
        return self._place(word, word, path) if path else None

    def _container(self, word: str, container: Container) -> Place:
        name = container.name
        if not container.pid:
            mend = f"start it with `{self.directory.client} start {name}`"
            if container.state == "restarting":
                mend = f"`{self.directory.client} logs {name}` tells why it ends again and again"
            raise UserError(f"{name} is not running ({container.state}): {mend}.")
        notes: tuple[str, ...] = ()
        mode, _, owner = container.network_mode.partition(":")
        if mode == "container" and owner:
            named_owner = next((c.name for c in self.directory.containers() if c.id == owner), owner[:12])
            notes = (f"{name} shares the network namespace of {named_owner}",)
        elif mode == "host":
            here = self._identify(container_path(container)) == self.place.netns
            notes = (f"{name} runs with --network host: to the network it is "
                     + ("the host" if here else "its engine's host, which is another namespace than this command's"),)
        return self._place(word, name, container_path(container), container, notes)

    def _place(self, word: str, name: str, path: str, container: Container | None = None,
               notes: tuple[str, ...] = ()) -> Place:
        """Remember the place. The name that was typed first stays, since its namespace can have only one."""
        number = self._identify(path)
        known = self._places.get(number)
        if known:
            return replace(known, word=word, container=container or known.container, notes=notes)
        place = Place(word, name, number, path, container, notes)
        self.directory.learn(path, name, Claim.TYPED)
        self._places[number] = place
        return place

    def _identify(self, path: str) -> int:
        try:
            return identify(path)
        except PermissionError:
            raise UserError(f"The network namespace {path} may not be opened: run it with sudo, in a container with "
                            "CAP_SYS_PTRACE too.") from None
        except OSError as error:
            raise UserError(f"The network namespace {path} cannot be opened ({(error.strerror or '').lower()}): "
                            "its process ended, or its engine runs on another machine.") from None

    def _unknown(self, word: str, also: str = "") -> UserError:
        directory = self.directory
        said = f'No container or namespace{self._where} is called "{word}"{also}'
        if not self._where and word in lab.named():
            return UserError(f"{said}, but the lab has one: put --lab before the command, as in "
                             f"`dnettrace --lab ping {word} host`.")
        if not self._where and (directory.problem or not directory.engine):
            at = directory.engine.place if directory.engine else SOCKETS[0]
            why = f" ({directory.problem})" if directory.problem else ""
            said += f" and no Docker engine answers at {at}{why}"
            other = "start it, or name a namespace with netns:NAME."
        else:
            show = "`dnettrace lab status` shows" if self._where else f"`{directory.client} ps` and `ip netns` show"
            other = f"{show} the names."
        words = sorted({"host", *(c.name for c in directory.containers()), *directory.named_namespaces()})
        near = sorted(difflib.get_close_matches(word.removeprefix("netns:"), words, n=3, cutoff=0.5))
        return UserError(f"{said}: " + (f"did you mean {', '.join(near)}?" if near else other))

    def look_for(self, name: str) -> None:
        """A container that may start later: it need not be there, but a name that means something else is refused."""
        if self.directory.container(name) is None:
            if self.directory.problem or not self.directory.engine:
                self.find(name)  # without an engine, only a namespace can be meant
            return

    def subnets(self, name: str) -> list[Network]:
        """Of one of the engine's networks. UserError where it has none of this name."""
        networks = self.directory.networks()
        for network in networks:
            if name in (network.name, network.id, network.device):
                return list(network.subnets)
        known = ", ".join(sorted(network.name for network in networks))
        raise UserError(f'No Docker network is called "{name}"' + (f": there are {known}." if known else
                                                                   ", and no engine tells of any."))

    @property
    def is_lab(self) -> bool:
        return bool(self._where)

    def find_publishers(self, protocol: str, port: int) -> None:
        """Have the containers that publish this port of the host among the places, since a packet to it ends there."""
        for container in self.directory.containers():
            if any((p.protocol, p.host_port) == (protocol, port) for p in container.ports):
                inspected = self.directory.inspect(container.id)
                if inspected and inspected.pid:
                    self._container(container.name, inspected)

    # -- addresses -----------------------------------------------------------------------------------------------

    def _literal(self, address: Address, source: Place, version: int | None) -> Destination:
        if version and version != address.version:
            raise UserError(f"{address} is an IPv{address.version} address: leave out -{version}.")
        place = self._owner(address, source)
        return Destination(address, place, place.name if place else str(address), place.notes if place else ())

    def _owner(self, address: Address, source: Place) -> Place | None:
        """Who has the address: the source itself, a container, the host, a named namespace; in this order."""
        if address.is_loopback or self._read(source).owner_of(address):
            return source
        for container in self.directory.containers():
            if any(address in end.addresses for end in container.attachments):
                inspected = self.directory.inspect(container.id)
                if inspected and inspected.pid:
                    return self._container(container.name, inspected)
        if self._read(self.place).owner_of(address):
            return self.place
        found = []
        for name, path in self.directory.named_namespaces().items():
            number = self.directory.learn(path, name, Claim.NAMED)
            if number is not None and number not in (source.netns, self.place.netns):
                namespace = self._namespace(number)
                if namespace and namespace.owner_of(address):
                    with suppress(UserError):  # it went away meanwhile
                        found.append(self._place(f"netns:{name}", name, path))
        return found[0] if len(found) == 1 else None  # of several, the packet's hops will tell which one it is

    def _resolved(self, word: str, source: Place, version: int | None, resolve: Resolver | None) -> Destination:
        if resolve is None or ":" in word:
            raise self._unknown(word)
        try:
            address = resolve(source, word, version)
        except (UserError, OSError) as error:
            if "." in word and isinstance(error, UserError):  # meant as a hostname: who was asked is what matters
                raise
            raise self._unknown(word, f" ({source.name} cannot resolve it as a hostname either)") from None
        place = self._owner(address, source)
        return Destination(address, place, word, place.notes if place else ())

    def _reachable(self, source: Place, here: Namespace, found: list[Address]) -> Address:
        """The best address that the source has a route to; the best one where it has none at all."""
        from tracer.topology.snapshot import route_get

        networks = [i.network for link in here.links.values() for i in link.addresses]
        if len(found) == 1 or any(found[0] in network for network in networks):
            return found[0]
        gateways = {route.gateway for route in here.routes}  # the host's address on the source's own bridge
        for address in [*(a for a in found if a in gateways), *found]:
            if route_get(source.path, address):
                return address
        return found[0]

    # -- snapshots -----------------------------------------------------------------------------------------------

    def topology(self, extra: Iterable[int] = (), *, listeners: bool = True) -> Topology:
        """The host, every place that was asked for and the namespaces `extra` (numbers) as they are now."""
        wanted = dict.fromkeys([*self._places, *extra])
        paths = {self.place.netns: self.place.path, **self.directory.paths}  # where most veth pairs lead: it is tried first
        read = {number: self.read(number, paths, listeners=listeners) for number in wanted}
        containers = {c.id: c for c in self.directory.containers()} | self.directory.inspected
        return Topology(host=self.place.netns, namespaces={n: found for n, found in read.items() if found},
                        names=dict(self.directory.names), containers=tuple(containers.values()),
                        networks=tuple(self.directory.networks()), client=self.directory.client)

    def everything(self) -> Topology:
        """The host, every container that runs and every named namespace as they are now, without their listeners."""
        for container in self.directory.containers():
            if container.state in ("running", "paused"):
                self.directory.inspect(container.id)
        self.directory.named_namespaces()
        return self.topology(tuple(self.directory.paths), listeners=False)

    def refresh(self, unknown: int) -> bool:
        """An event came from a namespace without a name: ask again, within limits. True if it has one now."""
        return self.directory.refresh(unknown)

    def asked_for(self) -> set[int]:
        """The namespaces of places that were asked for."""
        return set(self._places)

    def _namespace(self, number: int) -> Namespace | None:
        return self.read(number, self.directory.paths)

    def read(self, number: int, paths: Mapping[int, str], *, listeners: bool = True) -> Namespace | None:
        """None if it is not known or gone. `paths` and `listeners`: as read_namespace() wants them."""
        from tracer.topology.snapshot import read_namespace

        path = self.directory.paths.get(number)
        try:
            return read_namespace(path, self.directory.names[number], paths, listeners=listeners) if path else None
        except OSError:
            return None

    def _read(self, place: Place) -> Namespace:
        namespace = self._namespace(place.netns)
        if namespace is None:
            raise UserError(f"The network namespace of {place.name} cannot be read: it is gone, or you are not root.")
        return namespace
