"""Filter expressions: what libpcap says, and the interpreter against the kernel's own."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest

from tests.unit.expressions import EXPRESSIONS, frames
from tracer.errors import UserError
from tracer.kernel.expression import filter_source
from tracer.model.classic import Program, matches
from tracer.model.pcap import compile_expression

SO_ATTACH_FILTER = 26


class Kernel:
    """The kernel's classic BPF, over the bytes of a datagram: an AF_UNIX socket takes a filter like any other."""

    def __init__(self, program: Program) -> None:
        self._sender, self._receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
        buffer = ctypes.create_string_buffer(code, len(code))
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER,
                                  struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer)))
        self._receiver.setblocking(False)

    def matches(self, frame: bytes) -> bool:
        self._sender.send(frame)
        try:
            return bool(self._receiver.recv(1))
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()


@pytest.fixture(scope="module")
def built() -> dict[str, bytes]:
    return frames()


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda text: text[:40] or "empty")
def test_the_interpreter_agrees_with_the_kernel(expression: str, built: dict[str, bytes]) -> None:
    program = compile_expression(expression)
    kernel = Kernel(program)
    try:
        wrong = [name for name, frame in built.items() if matches(program, frame, len(frame)) != kernel.matches(frame)]
    finally:
        kernel.close()
    assert not wrong


def test_most_expressions_tell_frames_apart(built: dict[str, bytes]) -> None:
    sides = [{matches(program, frame, len(frame)) for frame in built.values()}
             for program in map(compile_expression, EXPRESSIONS)]
    same = [text for text, side in zip(EXPRESSIONS, sides, strict=True) if len(side) == 1]
    assert same == ["", "geneve", "mpls", "pppoes"]


def test_the_length_is_the_wire_s() -> None:
    program = compile_expression("len > 1000")
    assert matches(program, bytes(60), 1400)
    assert not matches(program, bytes(60), 60)


@pytest.mark.parametrize(("expression", "said"), [
    ("tcp portt 80", "syntax error"), ("wlan type mgt", r"802\.11|DLT_EN10MB"), ("ip broadcast", "netmask"),
    ("host nothing.invalid", "unknown host 'nothing.invalid'"), ("icmp and tcp", "expression rejects all packets"),
    ("ifname eth0", "ifname"), ("ip6 protochain 17", "protochain"), ("\udcff", "syntax error")])
def test_nonsense_is_refused_in_libpcap_s_words(expression: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compile_expression(expression)


@pytest.mark.parametrize("expression", ["inbound", "tcp and outbound"])
def test_a_packet_on_its_way_has_no_direction(expression: str) -> None:
    with pytest.raises(UserError, match=r"inbound|outbound"):  # libpcap's own words from 1.10.5 on
        filter_source(compile_expression(expression))


def test_a_filter_that_libpcap_would_think_about_for_long_is_refused() -> None:
    with pytest.raises(UserError, match="too long"):
        compile_expression(" or ".join(f"host 10.{n >> 8}.{n & 255}.1" for n in range(400)))
