"""Netlink's announcements that a namespace's devices, addresses, routes or rules are others now.

What changed is not read from them: whoever asks reads the namespace anew. A socket keeps its namespace alive, with the
devices in it: it is closed once nothing leads to the namespace any more.
"""

from __future__ import annotations

import errno
import socket
from types import TracebackType

from tracer.model.topology import Namespace
from tracer.topology.netns import in_namespace, leads

# RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE (linux/rtnetlink.h).
# RTNLGRP_NEIGH is not among them: a probe's own neighbour lookups would announce themselves.
GROUPS = sum(1 << group - 1 for group in (1, 5, 7, 8, 9, 11, 19))
LINKS = 1  # RTNLGRP_LINK alone
_ENDED = (errno.ENOENT, errno.EINVAL, errno.ESTALE)


class Changes:
    """Listens in each namespace that it is told of. A context manager."""

    def __init__(self) -> None:
        self._sockets: dict[int, tuple[str, socket.socket]] = {}  # by number

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for _path, one in self._sockets.values():
            one.close()

    def watch(self, namespace: Namespace) -> None:
        """Nothing where the namespace is gone."""
        if namespace.netns not in self._sockets:
            try:
                self._sockets[namespace.netns] = (namespace.path, in_namespace(namespace.path, open_socket))
            except OSError as error:
                if error.errno not in _ENDED:
                    raise

    def seen(self) -> set[int]:
        """The namespaces with changes since it was last asked."""
        for number, (path, one) in tuple(self._sockets.items()):
            if not leads(path, number):
                one.close()
                del self._sockets[number]
        return {number for number, (_path, one) in self._sockets.items() if drain(one)}


def open_socket(groups: int = GROUPS) -> socket.socket:
    """In the calling thread's network namespace."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
                           socket.NETLINK_ROUTE)
    opened.bind((0, groups))
    return opened


def overrun(error: OSError) -> bool:
    """There was more than the socket could keep: that too is a change."""
    return error.errno == errno.ENOBUFS


def drain(one: socket.socket) -> bool:
    """Whether there was something."""
    heard = False
    while True:
        try:
            one.recv(1 << 16)
        except BlockingIOError:
            return heard
        except OSError as error:
            if not overrun(error):
                raise
        heard = True
