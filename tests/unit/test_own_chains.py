"""The empty chains that stand where netfilter links would."""

from __future__ import annotations

import os
import struct
from typing import ClassVar

import pytest

from tracer.kernel import own_chains
from tracer.kernel.own_chains import OwnChains, mark
from tracer.model.probes import HookPoint
from tracer.topology import nfnetlink
from tracer.topology.nfnetlink import unpack, word

POINTS = [HookPoint(1, "prerouting", 0, -(2**31) + 1, (), False), HookPoint(1, "prerouting", 1, -199, (), True),
          HookPoint(1, "postrouting", 0, -(2**31) + 1, (), False)]


class Connection:
    made: ClassVar[list[tuple[int, str, bytes]]] = []
    closed = 0

    def commit(self, requests: list[tuple[int, str, bytes]]) -> None:
        Connection.made = requests

    def close(self) -> None:
        Connection.closed += 1


class Refusing(Connection):
    def commit(self, requests: list[tuple[int, str, bytes]]) -> None:
        raise OSError(95, "no tables with an owner")


def test_a_table_a_family_and_a_chain_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_chains, "Connection", Connection)
    OwnChains(POINTS, (4, 6))
    assert [(kind, family) for kind, family, _data in Connection.made] == [
        (kind, family) for family in ("ip", "ip6") for kind in (nfnetlink.NEWTABLE, *[nfnetlink.NEWCHAIN] * 3)]
    table, *chains = (unpack(data) for _kind, _family, data in Connection.made[:4])
    assert word(table[1]).startswith("dnettrace-")  # by which others, and we, know them (tracer/topology/chains.py)
    assert table[2] == struct.pack(">I", 2)
    prefix = f"{os.getpid():08x}"
    assert [word(chain[3]) for chain in chains] == [
        f"{prefix}a-prerouting", f"{prefix}b-prerouting", f"{prefix}a-postrouting"]
    places = [unpack(chain[4]) for chain in chains]
    assert [struct.unpack(">Ii", place[1] + place[2]) for place in places] == [
        (0, -(2**31) + 1), (0, -199), (4, -(2**31) + 1)]


def test_the_mark_is_how_the_names_begin() -> None:
    assert struct.pack("=Q", mark()).decode() == f"{os.getpid():08x}"


def test_what_is_refused_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_chains, "Connection", Refusing)
    before = Connection.closed
    with pytest.raises(OSError, match="owner"):
        OwnChains(POINTS, (4,))
    assert Connection.closed == before + 1
