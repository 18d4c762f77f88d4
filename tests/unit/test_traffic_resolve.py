"""A name is asked for as resolver(5) says, of a nameserver that may be slow, wrong, hostile or gone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR

from tracer.errors import UserError
from tracer.traffic import etc, resolve


class Nameserver:
    """Answers on 127.0.0.1 out of `zone`: (name, type) -> addresses, None for silence, bytes as they are."""

    def __init__(self) -> None:
        self.zone: dict[tuple[str, int], list[str] | bytes | None] = {}
        self.asked: list[tuple[str, int]] = []
        self.rcode = 3
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            data, client = self.socket.recvfrom(4096)
            if not data:
                return
            query = DNS(data)
            question = query.qd[0]
            key = (question.qname.decode().rstrip("."), question.qtype)
            self.asked.append(key)
            answer = self.zone.get(key, [])
            if answer is None:
                continue
            if isinstance(answer, bytes):
                self.socket.sendto(data[:2] + answer, client)
                continue
            reply = DNS(id=query.id, qr=1, rd=1, ra=1, rcode=0 if answer else self.rcode,
                        qd=DNSQR(qname=question.qname, qtype=question.qtype))
            reply.an = [DNSRR(rrname=question.qname, type="CNAME", rdata="alias.example."),
                        *(DNSRR(rrname="alias.example.", type=question.qtype, rdata=one) for one in answer)]
            self.socket.sendto(bytes(reply), client)


@pytest.fixture
def nameserver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nameserver]:
    server = Nameserver()
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "etc" / "resolv.conf").write_text("nameserver 127.0.0.1\nsearch a.example b.example\n")
    (tmp_path / "root" / "etc" / "hosts").write_text("10.0.0.7 listed\n")
    monkeypatch.setattr(etc, "_CONTAINER", etc.re.compile(f"({tmp_path}/root)/(.+)"))
    monkeypatch.setattr(resolve, "in_namespace", lambda path, function: function())  # setns needs root
    monkeypatch.setattr(resolve, "_PORT", server.socket.getsockname()[1])
    monkeypatch.setattr(resolve, "_WAIT_S", 0.2)
    yield server
    server.socket.sendto(b"", server.socket.getsockname())


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "root" / "etc")


def test_the_hosts_file_comes_first(nameserver: Nameserver, folder: str) -> None:
    assert resolve.resolve("listed", "-", folder, None) == ip_address("10.0.0.7")
    assert not nameserver.asked


def test_a_short_name_goes_through_the_search_list_and_aliases_are_followed(nameserver: Nameserver, folder: str) -> None:
    nameserver.zone["web.b.example", 1] = ["10.0.0.8", "10.0.0.9"]
    assert resolve.resolve("web", "-", folder, 4) == ip_address("10.0.0.8")
    assert nameserver.asked == [("web.a.example", 1), ("web.b.example", 1)]


def test_a_name_with_a_dot_is_asked_as_it_is_first(nameserver: Nameserver, folder: str) -> None:
    nameserver.zone["web.example", 28] = ["2001:db8::8"]
    assert resolve.resolve("web.example", "-", folder, None) == ip_address("2001:db8::8")
    assert nameserver.asked == [("web.example", 1), ("web.example", 28)]


def test_a_name_that_nobody_knows(nameserver: Nameserver, folder: str) -> None:
    with pytest.raises(UserError, match=r"gone\. has no IPv4 address, says 127\.0\.0\.1"):
        resolve.resolve("gone.", "-", folder, 4)
    assert nameserver.asked == [("gone", 1)]


@pytest.mark.parametrize("answer", [None, b"\x81\x80"], ids=["silence", "too short"])
def test_silence_is_no_answer(nameserver: Nameserver, folder: str, answer: bytes | None) -> None:
    nameserver.zone["web", 1] = answer
    with pytest.raises(UserError, match=r"web\. could not be resolved: 127\.0\.0\.1 .* did not answer"):
        resolve.resolve("web.", "-", folder, 4)
    assert len(nameserver.asked) == 2


def test_an_answer_of_nonsense_ends_in_a_sentence(nameserver: Nameserver, folder: str) -> None:
    nameserver.zone["web", 1] = b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\xc0\x0c" + b"\xff" * 20
    with pytest.raises(UserError, match="web"):
        resolve.resolve("web.", "-", folder, 4)


def test_a_nameserver_that_fails_is_no_answer(nameserver: Nameserver, folder: str) -> None:
    nameserver.rcode = 2
    with pytest.raises(UserError, match="did not answer"):
        resolve.resolve("web.", "-", folder, 4)


@pytest.mark.parametrize("name", ["", ".", "a..b", "x" * 64])
def test_what_is_no_name_is_asked_of_nobody(nameserver: Nameserver, folder: str, name: str) -> None:
    with pytest.raises(UserError, match="is no hostname"):
        resolve.resolve(name, "-", folder, None)
    assert not nameserver.asked


def test_the_host_uses_its_own_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "in_namespace", lambda path, function: function())
    assert resolve.resolve("localhost", "-", "/etc", 4) == ip_address("127.0.0.1")
