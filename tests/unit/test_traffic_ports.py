"""A block of ports is free only if nobody has any of its ports, by either protocol and either IP version."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from tracer.errors import UserError
from tracer.traffic import ports
from tracer.traffic.ports import free_base_port, held, release, reserve


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> int:
    """One block, the only one to be had, which is free now."""
    monkeypatch.setattr(ports, "in_namespace", lambda path, function: function())  # setns needs root
    base = free_base_port(["-"])
    monkeypatch.setattr(ports, "FIRST", base)
    monkeypatch.setattr(ports, "LAST", base)
    return base


def test_the_block_is_aligned_within_the_ephemeral_ports(here: int) -> None:
    assert here % 64 == 0
    assert 32768 <= here <= 60992


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_used_port_takes_its_block(here: int, kind: int, family: int, address: str) -> None:
    with ExitStack() as stack:
        used = stack.enter_context(socket.socket(family, kind))
        try:
            used.bind((address, here + 63))
        except OSError:
            pytest.skip("no IPv6 here")
        with pytest.raises(UserError, match="no 64 free ports"):
            free_base_port(["-"])
    assert free_base_port(["-"]) == here


def test_a_reserved_block_is_nobody_elses_until_it_is_released(here: int) -> None:
    held = reserve(here, socket.SOCK_STREAM)
    with pytest.raises(UserError, match=f"{here} to {here + 63} cannot be had"):
        reserve(here, socket.SOCK_STREAM)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", here + 7))
    release(held)
    release(reserve(here, socket.SOCK_STREAM))


def test_a_block_begins_at_a_multiple_of_its_size(here: int) -> None:
    with pytest.raises(ValueError, match="not the first port"):
        reserve(here + 1, socket.SOCK_DGRAM)


def test_a_block_that_is_held_for_a_while_is_nobody_elses(here: int) -> None:
    with held("-", here, "udp"), pytest.raises(UserError, match="no 64 free ports"):
        free_base_port(["-"])
    assert free_base_port(["-"]) == here
