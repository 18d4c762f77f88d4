"""Filter expressions in the real tracepoints, by each way that programs get there, against the interpreter."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.functional.engine import NETNS, delete_namespace
from tests.unit.expressions import EXPRESSIONS, frames
from tracer.kernel import btf, compiler, syscall
from tracer.kernel.btf import Btf
from tracer.kernel.expression import BYTES_STRUCT, filter_source
from tracer.kernel.probes import with_cast
from tracer.kernel.ring import map_counters
from tracer.model.classic import Program, matches
from tracer.model.pcap import compile_expression
from tracer.model.topology import inode
from tracer.topology.netns import identify, in_namespace

NAME = f"dnt{os.getpid()}-expression"
PATH = str(NETNS / NAME)
TRACEPOINTS = {"net_dev_queue": "get_l3(skb)", "netif_receive_skb": "LOAD(skb, data)"}
ETH_P_ALL = 3
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000  # include/uapi/linux/if_tun.h
Send = Callable[[bytes, str], int]  # a frame, from a device
EVERYTHING = compile_expression("")
WAYS = ("cast", "typed", "raw")


@pytest.fixture(scope="module")
def wire() -> Iterator[Send]:
    """Sends a frame from a device of a namespace: a to b, a veth pair; or c, through a bridge to d."""
    commands = ["link add name a type veth peer name b", "link add name c type veth peer name c1",
                "link add name d type veth peer name d1",
                "link add name br type bridge mcast_snooping 0", "link set c1 master br", "link set d1 master br",
                *(f"link set dev {name} arp off up" for name in ("a", "b", "c", "c1", "d", "d1", "br"))]
    try:
        subprocess.run(["ip", "netns", "add", NAME], check=True)
        in_namespace(PATH, lambda: Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1"))
        for command in commands:
            subprocess.run(["ip", "-n", NAME, *command.split()], check=True)
        with ExitStack() as stack:
            sockets = {name: stack.enter_context(in_namespace(PATH, lambda: socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW, 0))) for name in ("a", "c")}
            for name, sender in sockets.items():
                sender.bind((name, ETH_P_ALL))
            yield lambda frame, name: sockets[name].send(frame)
    finally:
        delete_namespace(NAME)


class Filters:
    """Programs for each filter at each of the two tracepoints, that note what they match in the devices `watched`."""

    def __init__(self, programs: list[Program], way: str, watched: dict[str, str]) -> None:
        self._count = len(programs)
        text = [compiler._source(name) for name in ("event.h", "read.h", "expression.h")]
        text.append('BPF_F_TABLE("array", int, u64, matched, COUNT, BPF_F_MMAPABLE);')
        for number, program in enumerate([*programs, EVERYTHING]):  # the last says that the packet was there
            text.append(filter_source(program, f"filter_{number}"))
            for tracepoint, l3 in TRACEPOINTS.items():
                slot = number + (self._count + 1) * list(TRACEPOINTS).index(tracepoint)
                device = "".join(f"name[{i}] == '{letter}' && " for i, letter in enumerate(watched[tracepoint]))
                text.append(f"""
static __always_inline int note_{slot}(u64 *ctx) {{
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  struct net_device *dev = LOAD(skb, dev);
  char name[16];
  bpf_probe_read_kernel(name, sizeof(name), dev->name);
  if ({device}!name[{len(watched[tracepoint])}] && get_netns(dev) == NETNS &&
      filter_{number}(skb, {l3}, LOAD(skb, protocol))) {{
    int slot = {slot};
    u64 *count = matched.lookup(&slot);
    if (count)
      __sync_fetch_and_add(count, 1);
  }}
  return 0;
}}
int on_{slot}(u64 *ctx) {{ return note_{slot}(ctx); }}""")
        with ExitStack() as stack:
            types = Btf()
            stack.callback(types.close)
            bytes_id = types.id(BYTES_STRUCT, btf.STRUCT)
            flags = {"cast": ("-DTYPED", f"-DBYTES_ID={bytes_id}"), "typed": ("-DTYPED",), "raw": ()}[way]
            program = _compile("\n".join(text), types, (
                f"-DNETNS={inode(identify(PATH))}U", f"-DCOUNT={2 * self._count + 2}", "-DTRANSPORT_AT=9", *flags))
            stack.callback(program.close)
            self._counters = map_counters(program.map_fd("matched"))
            function = types.id("bpf_rdonly_cast", btf.FUNC)
            if way == "cast" and not function:
                missing("this kernel has no bpf_rdonly_cast")
            for number in range(self._count + 1):
                for place, tracepoint in enumerate(TRACEPOINTS):
                    code = with_cast(program.bytecode(f"on_{number + (self._count + 1) * place}"), function)
                    loaded = syscall.load_program("filter", code, syscall.TYPE_RAW_TRACEPOINT) if way == "raw" else \
                        syscall.load_program("filter", code, syscall.TYPE_TRACING, syscall.ATTACH_TRACE_RAW_TP,
                                             types.tracepoint(tracepoint)[0])
                    stack.callback(os.close, loaded)
                    stack.callback(os.close, syscall.open_raw_tracepoint(loaded, tracepoint if way == "raw" else None))
            self._before = self._counters.tolist()
            self.close = stack.pop_all().close

    def matched(self) -> tuple[list[bool], list[bool]]:
        """By the sender and by the receiver, since the last call. Waits for the frame to arrive."""
        deadline = time.monotonic() + 5
        while any(self._counters[last] == self._before[last] for last in (self._count, -1)):  # attached last, run last
            assert time.monotonic() < deadline, "the frame did not arrive"
        now = self._counters.tolist()
        new = [after - before for after, before in zip(now, self._before, strict=True)]
        self._before = now
        assert set(new) <= {0, 1}
        return [bool(n) for n in new[:self._count]], [bool(n) for n in new[self._count + 1:-1]]


def _compile(text: str, types: Btf, flags: tuple[str, ...]) -> compiler.Program:
    source = compiler._source
    try:
        compiler._source = lambda _name: text
        return compiler.compile_program(types, flags)
    finally:
        compiler._source = source


@pytest.mark.parametrize("way", WAYS)
def test_the_tracepoints_agree_with_the_interpreter(way: str, wire: Send) -> None:
    assert not differences(way, wire, "a", ("a", "b"), frames(), lambda _text, frame: frame)


@pytest.mark.parametrize("way", WAYS)
def test_a_tag_that_the_kernel_took_out_of_the_frame_is_seen_where_it_is_asked_for(
        way: str, wire: Send) -> None:
    tagged = {name: frame for name, frame in frames().items() if name.startswith("vlan") and len(frame) > 30}
    assert not differences(way, wire, "c", ("d1", "d"), tagged,
                           lambda text, frame: frame if "vlan" in text else frame[:12] + frame[16:])


@pytest.mark.parametrize("way", WAYS)
def test_a_packet_without_an_ethernet_header_matches_neither_an_address_nor_its_opposite(way: str, tun: int) -> None:
    texts = ("ip", "udp port 9999", "len = 42", "ether host 02:42:ac:11:00:02", "not ether host 02:42:ac:11:00:02",
             "ip[0 - 14] = 0", "not ip[ip[1] - 14] = 0", "vlan or not ether host 02:42:ac:11:00:02")
    filters = Filters([compile_expression(text) for text in texts], way, dict.fromkeys(TRACEPOINTS, "t"))
    try:
        with in_namespace(PATH, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.sendto(b"", ("192.0.2.2", 9999))
        os.write(tun, os.read(tun, 2000))
        assert filters.matched() == ([True] * 3 + [False] * 5,) * 2
    finally:
        filters.close()


@pytest.fixture
def tun(wire: object) -> Iterator[int]:
    """A device t without Ethernet: what is read from it was sent to 192.0.2.0/24, what is written to it is received."""
    def create() -> int:
        device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"t", IFF_TUN | IFF_NO_PI))
        return device

    if not Path("/dev/net/tun").exists():
        missing("this kernel has no tun devices")
    device = in_namespace(PATH, create)
    try:
        for command in ("link set dev t up", "addr add 192.0.2.1/24 dev t"):
            subprocess.run(["ip", "-n", NAME, *command.split()], check=True)
        yield device
    finally:
        os.close(device)


@pytest.mark.parametrize("way", WAYS)
def test_a_filter_as_long_as_is_allowed_loads(way: str, wire: Send) -> None:
    program = compile_expression(" or ".join(f"host 10.{n}.{7 * n % 251}.1" for n in range(250)))
    Filters([program], way, dict.fromkeys(TRACEPOINTS, "a")).close()


def differences(way: str, wire: Send, sender: str, watched: tuple[str, str], sent: dict[str, bytes],
                seen: Callable[[str, bytes], bytes]) -> list[tuple[str, str, str]]:
    """(frame, expression, tracepoint) wherever the tracepoints at the two devices say another thing than the interpreter of
    what each expression should see of the frame."""
    programs = [compile_expression(text) for text in EXPRESSIONS]
    filters = Filters(programs, way, dict(zip(TRACEPOINTS, watched, strict=True)))
    wrong = []
    try:
        for name, frame in sent.items():
            wire(frame, sender)
            for place, said in zip(TRACEPOINTS, filters.matched(), strict=True):
                for text, program, match in zip(EXPRESSIONS, programs, said, strict=True):
                    part = seen(text, frame)
                    if matches(program, part, len(part)) != match:
                        wrong.append((name, text[:60], place))
    finally:
        filters.close()
    return wrong
