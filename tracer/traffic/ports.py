"""The block of source ports that a run's TCP or UDP probes are known by."""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial

from tracer.errors import UserError
from tracer.model.selection import PORTS
from tracer.topology.netns import in_namespace

FIRST, LAST = 32768, 60992  # of the blocks: within the kernel's own range of ephemeral ports
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def free_base_port(namespaces: Collection[str], asked: int = 0) -> int:
    """The first port of a block, chosen at random, of which nobody in these namespaces uses one, neither TCP nor UDP. The
    port that is asked is not in it: a packet's direction shows by which of its ports is."""
    bases = [base for base in range(FIRST, LAST + 1, PORTS) if not base <= asked < base + PORTS]
    secrets.SystemRandom().shuffle(bases)
    for base in bases:
        if all(in_namespace(namespace, partial(_is_free, base)) for namespace in namespaces):
            return base
    raise UserError(f"The sender has no {PORTS} free ports in a row between {FIRST} and {LAST + PORTS - 1}: "
                    "end a program there that holds them.")


def _is_free(base: int) -> bool:
    try:
        for kind in _KINDS.values():
            release(_bind_block(base, kind))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def reserve(base_port: int, kind: socket.SocketKind) -> list[socket.socket]:
    """A bound socket for each port of the block, in the namespace of the calling thread: nobody else gets the port
    meanwhile, and of UDP the kernel does not refuse an answer. To a TCP segment for a socket that is bound and no more the
    kernel answers as if there were none: it resets the connection that a probe half opened."""
    if base_port % PORTS or not FIRST <= base_port <= LAST:
        raise ValueError(f"{base_port} is not the first port of a block")
    try:
        return _bind_block(base_port, kind)
    except OSError as error:
        raise UserError(f"The ports {base_port} to {base_port + PORTS - 1} cannot be had "
                        f"({error.strerror or error}): run it again for others.") from None


@contextmanager
def held(namespace: str, base_port: int, transport: str) -> Iterator[None]:
    """reserve() in this namespace for a while, of "tcp" or "udp"."""
    reserved = in_namespace(namespace, partial(reserve, base_port, _KINDS[transport]))
    try:
        yield
    finally:
        release(reserved)


def release(reserved: list[socket.socket]) -> None:
    for one in reserved:
        one.close()


def _bind_block(base: int, kind: socket.SocketKind) -> list[socket.socket]:
    bound: list[socket.socket] = []
    try:
        for port in range(base, base + PORTS):
            bound.append(reserve_port(port, kind))
    except BaseException:
        release(bound)
        raise
    return bound


def reserve_port(port: int, kind: socket.SocketKind) -> socket.socket:
    """OSError where somebody has it."""
    bound = _any_address(kind)
    try:
        bound.bind(("", port))
    except OSError:
        bound.close()
        raise
    return bound


def _any_address(kind: socket.SocketKind) -> socket.socket:
    """For IPv6 and IPv4 both, so that it is in the way of either; for IPv4 where the kernel has no IPv6."""
    try:
        opened = socket.socket(socket.AF_INET6, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return opened
