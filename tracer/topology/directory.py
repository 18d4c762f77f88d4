"""Who lives on this machine: containers and named namespaces, by name and by the number of their namespace.

The engine is asked for its list once, and for one container's details only when that container is wanted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum

from tracer.errors import UserError
from tracer.model.topology import Container, EngineNetwork
from tracer.topology.engine import Engine, EngineError
from tracer.topology.netns import identify, leads

RELIST = 1.0  # seconds between two listings for namespaces that nobody knows
FORGET = 64.0  # seconds, the longest that one such namespace waits for its next listing


class Claim(IntEnum):
    """How good a name for a namespace is; a better one replaces it."""

    GUEST = 0  # a container that shares it
    NAMED = 1  # a file in /run/netns
    OWNER = 2  # the container that it was made for
    TYPED = 3  # what the user calls it


class Directory:
    def __init__(self, engine: Engine | None, named: Callable[[], Mapping[str, str]]) -> None:
        """`named` lists the named namespaces (name -> path)."""
        self.engine = engine
        self.problem: str | None = None  # why the engine could not be asked
        self.names: dict[int, str] = {}  # by number
        self.paths: dict[int, str] = {}  # by number
        self.inspected: dict[str, Container] = {}  # by id
        self._claims: dict[int, Claim] = {}
        self.named = named
        self._list: list[Container] | None = None
        self._networks: list[EngineNetwork] | None = None
        self._again: dict[int, tuple[float, float]] = {}  # unknown number -> (not before, next wait), monotonic seconds
        self._listed_at = float("-inf")
        self.named_namespaces()

    def named_namespaces(self) -> dict[str, str]:
        """Named namespaces as they are now: name -> path."""
        found = dict(self.named())
        for name, path in found.items():
            self.learn(path, name, Claim.NAMED)
        return found

    def learn(self, path: str, name: str, claim: Claim) -> int | None:
        """Note who lives at `path`, and return its number; None if it is gone or forbidden."""
        try:
            number = identify(path)
        except OSError:
            return None
        if number not in self.names or claim > self._claims[number] or not leads(self.paths[number], number):
            self.names[number], self.paths[number], self._claims[number] = name, path, claim
        return number

    def forget(self, number: int) -> None:
        """It ended, or has another name now."""
        for known in (self.names, self.paths, self._claims):
            known.pop(number, None)

    def drop(self, identity: str) -> None:
        """The container was removed."""
        self.inspected.pop(identity, None)
        self._list = [container for container in self._list or () if container.id != identity]

    def list_anew(self) -> None:
        """What the engine listed may be otherwise now: the next question asks it again."""
        self._list = self._networks = self.problem = None

    @property
    def client(self) -> str:
        """The engine's own command."""
        return self.engine.client if self.engine else "docker"

    def list_networks_anew(self) -> None:
        self._networks = None

    def containers(self) -> list[Container]:
        """All containers as the engine listed them (`pid` 0); none if it does not answer, which `problem` explains."""
        if self._list is None:
            self._list = []
            if self.engine:
                try:
                    self._list = self.engine.containers()
                except EngineError as error:
                    self.problem = str(error)
        return self._list

    def networks(self) -> list[EngineNetwork]:
        """The engine's networks, asked for once until refresh() asks anew; none if it does not tell them."""
        if self._networks is None:
            self._networks = []
            with suppress(EngineError):
                self._networks = self.engine.networks() if self.engine else []
        return self._networks

    def container(self, word: str) -> Container | None:
        """The container of that name or id (four digits of it suffice), inspected. UserError if several fit."""
        listed = self.containers()
        found = [c for c in listed if c.name == word]
        if not found and re.fullmatch("[0-9a-f]{4,64}", word):
            found = [c for c in listed if c.id.startswith(word)]
        if len(found) > 1:
            names = ", ".join(c.name for c in found[:5])
            raise UserError(f'Several containers have an id that starts with "{word}" ({names}): give more of it.')
        return self.inspect(found[0].id) if found else None

    def inspect(self, identity: str) -> Container | None:
        """A container's details as they are now. None if it is gone, or its engine is."""
        try:
            container = self.engine.inspect(identity) if self.engine else None
        except EngineError as error:
            self.problem = str(error)
            return None
        if container:
            self.inspected[container.id] = container
            if container.pid:
                self.learn(container_path(container), container.name, claim(container))
        return container

    def refresh(self, unknown: int) -> bool:
        """Look for a namespace that an event came from. True if it has a name now.

        At most one listing a second, and for one namespace after 1, 2, 4, ... 64 seconds only: a namespace that nobody
        knows costs next to nothing, and one whose container is just being started is found a moment later.
        """
        now = time.monotonic()
        not_before, wait = self._again.get(unknown, (0.0, RELIST))
        if unknown in self.names or now < not_before or now - self._listed_at < RELIST:
            return unknown in self.names
        self._listed_at = now
        self.list_anew()
        self.named_namespaces()
        for container in self.containers():  # newest first: most likely the one that is asked for
            if unknown in self.names:
                break
            if container.state in ("running", "paused") and not self._current(container.id):
                self.inspect(container.id)
        if unknown not in self.names:
            if len(self._again) >= 1024:
                self._again.clear()
            self._again[unknown] = (now + wait, min(2 * wait, FORGET))
            return False
        self._again.pop(unknown, None)
        return True

    def _current(self, identity: str) -> bool:
        """Whether what is known of the container holds: a restart gives it a new process and a new namespace."""
        container = self.inspected.get(identity)
        try:
            return container is not None and container.pid > 0 and identify(container_path(container)) in self.names
        except OSError:
            return False


def claim(container: Container) -> Claim:
    """On the namespace that it lives in."""
    guest = container.network_mode == "host" or container.network_mode.startswith("container:")
    return Claim.GUEST if guest else Claim.OWNER


def container_path(container: Container) -> str:
    """Opens a running container's network namespace."""
    return f"/proc/{container.pid}/ns/net"
