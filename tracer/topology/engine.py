"""The container engine's API, as far as names and addresses need it: Docker's, which Podman serves as well.

Whatever the engine answers is text from outside: it is carried as it is, and escaped where it is shown.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any
from urllib.parse import quote, urlsplit

from tracer.errors import UserError
from tracer.model.topology import Address, Attachment, Container, EngineNetwork, Network, Published

SOCKETS = ("/var/run/docker.sock", "/run/podman/podman.sock")  # asked in this order when no variable names one
EVENT_BYTES = 4 << 20  # more at a time is no engine's stream of events
TIMEOUT = 3.0  # seconds for each connect and read: a hung engine must not hang the command


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """Something happened to a container or a network."""

    kind: str  # "container", "network"
    action: str  # "start", "die", "rename", "connect", ...
    container: str  # its id; "" where a network alone is concerned
    name: str = ""  # of the container, as it is now
    old_name: str = ""  # of one that was renamed


class EngineError(Exception):
    """The engine does not answer, or not as one. The message says why, without naming the engine."""


class Engine:
    """One engine. Nothing is asked before it is needed; each question is one request on a connection that is kept."""

    def __init__(self, address: str) -> None:
        """`address` is unix:///PATH, tcp://HOST:PORT or http://HOST:PORT; ValueError for anything else."""
        url = urlsplit(address)
        if url.scheme == "unix" and url.path:
            self.place = url.path
            self._open: Callable[[], http.client.HTTPConnection] = partial(_UnixConnection, url.path)
        elif url.scheme in ("tcp", "http") and url.hostname:
            self.place = url.netloc
            self._open = partial(http.client.HTTPConnection, url.hostname, url.port or 2375, timeout=TIMEOUT)
        else:
            raise ValueError(address)
        self._address = address
        self._connection = self._open()
        self._server = ""  # what it last called itself

    def another(self) -> Engine:
        """The same one, for another thread."""
        return Engine(self._address)

    def containers(self) -> list[Container]:
        """All containers, stopped ones too, newest first, in one request. `pid` is 0 in each: the list has none."""
        rows = self._get("/containers/json?all=1")
        try:
            return [container for row in rows if (container := _listed(row))]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EngineError("it answers something else than a list of containers") from error

    def inspect(self, identity: str) -> Container | None:
        """One container by its id or name; None if there is none (any more)."""
        row = self._get(f"/containers/{quote(identity, safe='')}/json")
        try:
            return _inspected(row) if row is not None else None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EngineError("it answers something else than a container") from error

    def networks(self) -> list[EngineNetwork]:
        """All networks, in one request; a second one for Podman, which names their devices in its own API only."""
        rows = self._get("/networks") or []
        podman = self.client == "podman"
        own = None
        with suppress(EngineError):  # Podman 3 has another form of it
            own = self._get("/v4.0.0/libpod/networks/json") if podman else None
        try:
            return [_network(row, podman) for row in rows] if own is None else [_of_podman(row) for row in own]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EngineError("it answers something else than a list of networks") from error

    def version(self) -> str:
        """What it calls itself, as "Docker 20.10.24"."""
        row = self._get("/version")
        try:
            names = [part.get("Name") or "" for part in row.get("Components") or []]
            return f"{'Podman' if any('Podman' in name for name in names) else 'Docker'} {row['Version']}"
        except (AttributeError, KeyError, TypeError) as error:
            raise EngineError("it answers something else than its version") from error

    @property
    def client(self) -> str:
        """The command with which people talk to it: "docker" or "podman", as its last answer told."""
        return "podman" if self._server.startswith("Libpod") else "docker"

    def connect(self) -> None:
        """EngineError if nothing listens at its address."""
        try:
            self._connection.connect()
        except OSError as error:
            raise EngineError(_reason(error)) from error

    def events(self) -> Events:
        """What happens to containers and networks from now on, on a connection of its own. EngineError without one."""
        connection = self._open()
        try:
            connection.connect()
            connection.sock.sendall(b"GET /events?filters=" + quote('{"type":["container","network"]}').encode()
                                    + b" HTTP/1.0\r\nHost: docker\r\n\r\n")  # 1.0: an answer without chunks
        except OSError as error:
            connection.close()
            raise EngineError(_reason(error)) from error
        return Events(connection.sock)

    def _get(self, path: str) -> Any:
        """The decoded answer; None for 404."""
        for attempt in (1, 2):
            try:
                self._connection.request("GET", path, headers={"Host": "docker"})
                answer = self._connection.getresponse()
                body = answer.read()
                break
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                # An engine closes connections that idle; a fresh one settles whether it is still there.
                if attempt == 2 or isinstance(error, TimeoutError):
                    raise EngineError(_reason(error)) from error
        self._server = answer.getheader("Server") or ""
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise EngineError(f"it answers {answer.status} {answer.reason}")
        try:
            return json.loads(body)
        except ValueError as error:
            raise EngineError("it answers something else than JSON") from error


class Events:
    """An engine's stream of events. Its socket can be waited for."""

    def __init__(self, opened: socket.socket) -> None:
        opened.setblocking(False)
        self._socket = opened
        self._data = b""
        self._begun = False  # behind the answer's header

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> list[EngineEvent]:
        """Those that are there. EngineError at the stream's end."""
        try:
            while data := self._socket.recv(1 << 16):
                self._data += data
                if len(self._data) > EVENT_BYTES:
                    raise EngineError("it answers something else than events")
            raise EngineError("it ended")
        except BlockingIOError:
            pass
        except OSError as error:
            raise EngineError(_reason(error)) from error
        if not self._begun:
            header, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return []
            if header.split(b" ", 2)[1:2] != [b"200"]:
                raise EngineError("it has no events")
            self._begun, self._data = True, rest
        *rows, self._data = self._data.split(b"\n")
        try:
            return [_event(json.loads(row)) for row in rows if row.strip()]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EngineError("it answers something else than events") from error


def find_engine(environ: Mapping[str, str]) -> Engine | None:
    """The engine that the environment names, else the first of the usual sockets that something listens at.

    Where none listens but a socket exists, that one: asking it gives the reason. None if there is not even a socket.
    """
    for variable in ("DOCKER_HOST", "CONTAINER_HOST"):
        if environ.get(variable):
            try:
                return Engine(environ[variable])
            except ValueError:
                raise UserError(f'{variable} is "{environ[variable]}", which names no engine on this machine: '
                                "set it to unix:///PATH, tcp://HOST:PORT or http://HOST:PORT.") from None
    silent = None
    for path in SOCKETS:
        if not os.path.exists(path):
            continue
        engine = Engine(f"unix://{path}")
        try:
            engine.connect()
            return engine
        except EngineError:
            silent = silent or engine
    return silent


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _event(row: Any) -> EngineEvent:
    actor = row["Actor"]
    attributes = actor.get("Attributes") or {}
    kind = row["Type"]
    old_name = (attributes.get("oldName") or "").lstrip("/")
    if kind == "container":
        return EngineEvent(kind, row["Action"], actor["ID"], (attributes.get("name") or "").lstrip("/"), old_name)
    return EngineEvent(kind, row["Action"], attributes.get("container") or "")


def _listed(row: Any) -> Container | None:
    """A row of /containers/json. `Names` holds aliases of other containers' links too: those have a second slash."""
    names = [name.lstrip("/") for name in row.get("Names") or [] if "/" not in name.lstrip("/")]
    if not names:
        return None
    return Container(
        id=row["Id"], name=names[0], pid=0, state=row.get("State") or "unknown",
        network_mode=(row.get("HostConfig") or {}).get("NetworkMode") or "default", attachments=_attachments(row),
        ports=tuple(Published(port["Type"], port["PrivatePort"], _address(port.get("IP")), port["PublicPort"])
                    for port in row.get("Ports") or [] if port.get("PublicPort")))


def _inspected(row: Any) -> Container:
    state = row.get("State") or {}
    return Container(
        id=row["Id"], name=row["Name"].lstrip("/"), pid=state.get("Pid") or 0, state=state.get("Status") or "unknown",
        network_mode=(row.get("HostConfig") or {}).get("NetworkMode") or "default", attachments=_attachments(row),
        ports=_ports((row.get("NetworkSettings") or {}).get("Ports") or {}))


def _ports(rows: Any) -> tuple[Published, ...]:
    """{"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "81/tcp": None}"""
    found = []
    for key, places in rows.items():
        port, _, protocol = key.partition("/")
        found += [Published(protocol or "tcp", int(port), _address(place.get("HostIp")), int(place["HostPort"]))
                  for place in places or [] if place.get("HostPort")]
    return tuple(found)


def _network(row: Any, podman: bool) -> EngineNetwork:
    options, driver = row.get("Options") or {}, row.get("Driver") or ""
    ranges = (row.get("IPAM") or {}).get("Config") or []
    device = options.get("com.docker.network.bridge.name") or (None if podman else f"br-{row['Id'][:12]}")
    return EngineNetwork(
        id=row["Id"], name=row["Name"], driver=driver, device=device if driver == "bridge" else None,
        subnets=_subnets(r.get("Subnet") for r in ranges), gateways=_gateways(r.get("Gateway") for r in ranges),
        internal=bool(row.get("Internal")), icc=options.get("com.docker.network.bridge.enable_icc") != "false",
        masquerade=options.get("com.docker.network.bridge.enable_ip_masquerade") != "false",
        parent=options.get("parent") if driver in ("macvlan", "ipvlan") else None)


def _of_podman(row: Any) -> EngineNetwork:
    options, driver, ranges = row.get("options") or {}, row.get("driver") or "", row.get("subnets") or []
    device = row.get("network_interface") or None
    return EngineNetwork(
        id=row["id"], name=row["name"], driver=driver, device=device if driver == "bridge" else None,
        subnets=_subnets(r.get("subnet") for r in ranges), gateways=_gateways(r.get("gateway") for r in ranges),
        internal=bool(row.get("internal")), masquerade=options.get("no_snat") not in ("true", "1"),
        parent=device if driver in ("macvlan", "ipvlan") else None)


def _subnets(texts: Iterable[Any]) -> tuple[Network, ...]:
    found = []
    for text in texts:
        with suppress(ValueError):  # an empty string, or no address
            found.append(ip_network(text, strict=False))
    return tuple(found)


def _gateways(texts: Iterable[Any]) -> tuple[Address, ...]:
    found = []
    for text in texts:
        with suppress(ValueError):
            found.append(ip_interface(text).ip)  # old engines write the prefix length, too
    return tuple(found)


def _attachments(row: Any) -> tuple[Attachment, ...]:
    networks = (row.get("NetworkSettings") or {}).get("Networks") or {}
    return tuple(
        Attachment(network=name, addresses=_addresses(end), mac=(end.get("MacAddress") or "").lower() or None)
        for name, end in networks.items() if end)


def _addresses(end: Any) -> tuple[Address, ...]:
    """A stopped container's addresses are empty strings, and Docker 29 writes "invalid IP" there."""
    return tuple(filter(None, (_address(end.get(key)) for key in ("IPAddress", "GlobalIPv6Address"))))


def _address(text: Any) -> Address | None:
    try:
        return ip_address(str(text))
    except ValueError:
        return None
