"""The engine's client against a small server on a UNIX socket, which answers what a real Docker 20.10 answered."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tracer.errors import UserError
from tracer.model.topology import EngineNetwork, Published
from tracer.topology import engine as engine_module
from tracer.topology.engine import Engine, EngineError, EngineEvent, Events, find_engine

RECORDED = json.loads((Path(__file__).parent / "topology" / "docker_20_10.json").read_text(encoding="utf-8"))


@dataclass
class Server:
    """Answers one request a connection when `closes`, as an engine does whose connection idled too long."""

    path: str
    answers: dict[str, Any]
    closes: bool = False
    server: str = "Docker/20.10.24+dfsg1 (linux)"
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:  # closed
                return
            with connection, connection.makefile("rb") as lines:
                while line := lines.readline():
                    if line == b"\r\n":
                        connection.sendall(self.answer(self.asked[-1]))
                        if self.closes:
                            break
                    elif line.startswith(b"GET "):
                        self.asked.append(line.split()[1].decode())

    def answer(self, path: str) -> bytes:
        found = self.answers.get(path)
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        status = "200 OK" if path in self.answers else "404 Not Found"
        return f"HTTP/1.1 {status}\r\nServer: {self.server}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    answers = {f"/containers/{key}/json": row for key, row in RECORDED["inspect"].items()}
    made = Server(str(tmp_path / "docker.sock"), {"/containers/json?all=1": RECORDED["list"], **answers})
    yield made
    made.listener.close()


def client(server: Server) -> Engine:
    return Engine(f"unix://{server.path}")


def test_lists_every_container_in_one_request(server: Server) -> None:
    containers = {c.name: c for c in client(server).containers()}
    assert server.asked == ["/containers/json?all=1"]
    assert containers["topo-stopped"].state == "exited"
    assert containers["topo-stopped"].attachments[0].addresses == ()
    assert containers["topo-shared"].network_mode == f"container:{containers['c1'].id}"
    assert containers["topo-host"].network_mode == "host"
    assert [end.network for end in containers["topo-two"].attachments] == ["bridge", "topo-web"]
    assert containers["c2"].attachments[0].addresses == (IPv4Address("172.17.0.3"),)
    assert containers["c2"].attachments[0].mac == "02:42:ac:11:00:03"
    assert {c.pid for c in containers.values()} == {0}


def test_another_containers_link_is_no_name(server: Server) -> None:
    row = next(row for row in RECORDED["list"] if "/c1" in row["Names"])
    assert "/topo-two/neighbour" in row["Names"]  # what --link leaves
    server.answers["/containers/json?all=1"] = [row | {"Names": sorted(row["Names"], reverse=True)}]
    assert [c.name for c in client(server).containers()] == ["c1"]


def test_inspects_one(server: Server) -> None:
    identity = next(row["Id"] for row in RECORDED["list"] if "/c2" in row["Names"])
    container = client(server).inspect(identity)
    assert container is not None
    assert (container.name, container.state) == ("c2", "running")
    assert container.pid == RECORDED["inspect"][identity]["State"]["Pid"]
    assert client(server).inspect("gone") is None


def test_both_ip_versions_and_what_newer_engines_write_for_none(server: Server) -> None:
    end = {"IPAddress": "invalid IP", "GlobalIPv6Address": "fd00:17::2", "MacAddress": "02:42:AC:11:00:02"}
    row = {"Id": "ab" * 32, "Names": ["/v6"], "NetworkSettings": {"Networks": {"six": end, "unused": None}}}
    server.answers["/containers/json?all=1"] = [row]
    (container,) = client(server).containers()
    assert container.attachments[0].addresses == (IPv6Address("fd00:17::2"),)
    assert container.attachments[0].mac == "02:42:ac:11:00:02"
    assert container.network_mode == "default"


def test_networks_in_one_request(server: Server) -> None:
    server.answers["/networks"] = RECORDED["networks"]
    networks = {network.name: network for network in client(server).networks()}
    assert server.asked == ["/networks"]
    assert networks["bridge"].device == "docker0"
    assert networks["bridge"].subnets == (ip_network("172.17.0.0/16"),)
    assert networks["bridge"].icc
    web = networks["web"]
    assert web == EngineNetwork(web.id, "web", "bridge", f"br-{web.id[:12]}", (ip_network("172.30.0.0/24"),),
                                (ip_address("172.30.0.254"),), icc=False)
    assert (networks["inside"].device, networks["inside"].internal) == ("inside0", True)
    assert networks["six"].subnets == (ip_network("172.19.0.0/16"), ip_network("fd00:6::/64"))
    assert [(n.driver, n.device, n.parent) for n in (networks["lan"], networks["vlan"], networks["host"])] == [
        ("macvlan", None, "eth0"), ("ipvlan", None, "eth0"), ("host", None, None)]


def test_podmans_networks(server: Server) -> None:
    compatible = {"Name": "bridge", "Id": "2f" * 32, "Driver": "bridge", "Options": None, "IPAM": {"Config": None}}
    server.server, server.answers["/networks"] = "Libpod/5.4.2 (linux)", [compatible]
    assert client(server).networks() == [EngineNetwork("2f" * 32, "bridge", "bridge", None)]
    server.answers["/v4.0.0/libpod/networks/json"] = [{  # as its API's description has it
        "name": "podman", "id": "2f" * 32, "driver": "bridge", "network_interface": "podman0", "internal": False,
        "subnets": [{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]}]
    assert client(server).networks() == [EngineNetwork(
        "2f" * 32, "podman", "bridge", "podman0", (ip_network("10.88.0.0/16"),), (ip_address("10.88.0.1"),))]


def test_networks_of_something_else(server: Server) -> None:
    assert client(server).networks() == []  # 404
    server.answers["/networks"] = [{"Name": "x"}]
    with pytest.raises(EngineError, match="something else than a list of networks"):
        client(server).networks()


def test_published_ports(server: Server) -> None:
    c3 = next(row for row in RECORDED["list"] if "/c1" in row["Names"]) | {"Ports": RECORDED["ports"]["c3"]}
    server.answers["/containers/json?all=1"] = [c3]
    (listed,) = client(server).containers()
    assert listed.ports[:3] == (
        Published("udp", 53, ip_address("127.0.0.1"), 53), Published("tcp", 81, ip_address("0.0.0.0"), 8081),
        Published("tcp", 81, ip_address("::"), 8081))
    row = RECORDED["inspect"][c3["Id"]]
    server.answers["/containers/c3/json"] = row | {
        "NetworkSettings": row["NetworkSettings"] | {"Ports": RECORDED["inspected"]["c3"] | {"9/tcp": None}}}
    inspected = client(server).inspect("c3")
    assert inspected is not None
    assert set(inspected.ports) == set(listed.ports)
    server.answers["/containers/json?all=1"] = [c3 | {"Ports": RECORDED["ports"]["c4"]}]  # exposed, not published
    assert client(server).containers()[0].ports == ()


def test_a_name_cannot_leave_its_place_in_the_path(server: Server) -> None:
    client(server).inspect("../a b?c")
    assert server.asked == ["/containers/..%2Fa%20b%3Fc/json"]


def test_asks_again_when_the_kept_connection_was_closed(server: Server) -> None:
    server.closes = True
    engine = client(server)
    assert engine.containers()
    assert engine.containers()
    assert len(server.asked) == 2


@pytest.mark.parametrize("answer", [b"<html>", {"message": "x"}, [1], [{"Names": ["/a"]}], None])
def test_something_else_than_an_engine(server: Server, answer: object) -> None:
    server.answers["/containers/json?all=1"] = answer
    with pytest.raises(EngineError, match="something else"):
        client(server).containers()


def test_a_socket_that_nobody_listens_at(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left.sock"))
    with pytest.raises(EngineError, match="connection refused"):
        Engine(f"unix://{tmp_path}/left.sock").containers()
    with pytest.raises(EngineError, match="no such file"):
        Engine(f"unix://{tmp_path}/none.sock").containers()


def test_an_engine_that_hangs_is_left_after_the_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "TIMEOUT", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "hung.sock"))
        listener.listen()
        begun = time.monotonic()
        with pytest.raises(EngineError, match=r"no answer within 0\.2 s"):
            Engine(f"unix://{tmp_path}/hung.sock").containers()
        assert time.monotonic() - begun < 2


def test_the_environment_names_the_engine(server: Server) -> None:
    found = find_engine({"DOCKER_HOST": f"unix://{server.path}"})
    assert found is not None
    assert found.place == server.path
    podman = find_engine({"CONTAINER_HOST": "tcp://127.0.0.1:8888"})
    assert podman is not None
    assert podman.place == "127.0.0.1:8888"


@pytest.mark.parametrize("address", ["ssh://host", "npipe://x", "docker", "unix://", "tcp://host:port"])
def test_an_address_that_cannot_be_used(address: str) -> None:
    with pytest.raises(UserError, match=r"set it to unix:///PATH, tcp://HOST:PORT or http://HOST:PORT\.$"):
        find_engine({"DOCKER_HOST": address})


def test_podmans_socket_where_dockers_is_dead(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left.sock"))
    dead = str(tmp_path / "left.sock")
    monkeypatch.setattr(engine_module, "SOCKETS", (str(tmp_path / "none"), dead, server.path))
    found = find_engine({})
    assert found is not None
    assert found.place == server.path
    monkeypatch.setattr(engine_module, "SOCKETS", (str(tmp_path / "none"), dead))
    silent = find_engine({})
    assert silent is not None
    assert silent.place == dead
    monkeypatch.setattr(engine_module, "SOCKETS", (str(tmp_path / "none"),))
    assert find_engine({}) is None


ROWS = (b'{"Type":"container","Action":"rename","Actor":{"ID":"aa","Attributes":{"name":"new","oldName":"/old"}}}\n'
        b'{"Type":"network","Action":"connect","Actor":{"ID":"cc","Attributes":{"container":"aa"}}}\n')


def streaming(*parts: bytes) -> Events:
    """What an engine says, part by part, and then the end."""
    ours, theirs = socket.socketpair()
    for part in parts:
        theirs.sendall(part)
    theirs.close()
    return Events(ours)


def test_events() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        events = Events(ours)
        found = []
        for byte in b"HTTP/1.0 200 OK\r\nApi-Version: 1.41\r\n\r\n" + ROWS:
            theirs.sendall(bytes([byte]))
            found += events.read()
        assert found == [EngineEvent("container", "rename", "aa", "new", "old"), EngineEvent("network", "connect", "aa")]
    with pytest.raises(EngineError, match="it ended"):
        events.read()
    events.close()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.0 404 Not Found\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n[]\n",
                                  b"x\r\n\r\n\xff\n"])
def test_what_is_no_stream_of_events(said: bytes) -> None:
    events = streaming(said)
    with pytest.raises(EngineError):
        events.read()
    events.close()
