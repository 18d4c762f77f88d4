"""Names for namespaces, from a made-up engine and made-up named namespaces; the one that is named is the tests' own."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from tracer.errors import UserError
from tracer.model.topology import Container, EngineNetwork
from tracer.topology import netns
from tracer.topology.directory import Claim, Directory
from tracer.topology.engine import Engine, EngineError

HERE = netns.here()


def container(name: str, identity: str, mode: str = "bridge", pid: int = 0, state: str = "running") -> Container:
    return Container(identity * (64 // len(identity)), name, pid, state, mode)


class FakeEngine:
    place = "/fake.sock"
    client = "docker"

    def __init__(self, *containers: Container) -> None:
        self.known = list(containers)
        self.listings = 0
        self.inspections: list[str] = []
        self.dead = False

    def containers(self) -> list[Container]:
        self.listings += 1
        if self.dead:
            raise EngineError("connection refused")
        return [replace(c, pid=0) for c in self.known]

    def networks(self) -> list[EngineNetwork]:
        return []

    def inspect(self, identity: str) -> Container | None:
        found = next((c for c in self.known if c.id == identity), None)
        self.inspections.append(found.name if found else identity)
        return found


def directory(engine: FakeEngine | None, named: Mapping[str, str] | None = None) -> Directory:
    return Directory(cast("Engine | None", engine), lambda: named or {})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_container_by_name_or_id_inspects_only_that_one() -> None:
    engine = FakeEngine(container("c1", "1a2b"), container("c2", "1a3c"), container("dead", "beef", state="exited"))
    book = directory(engine)
    assert cast(Container, book.container("c1")).name == "c1"
    assert cast(Container, book.container("1a3c1a")).name == "c2"
    assert cast(Container, book.container("dead")).name == "dead"
    assert book.container("1a3") is None  # too short for an id
    assert book.container("cafe") is None
    assert engine.inspections == ["c1", "c2", "dead"]
    assert engine.listings == 1


def test_a_name_wins_over_an_id() -> None:
    assert cast(Container, directory(FakeEngine(container("x", "beef"), container("beef", "1234"))).container("beef")
                ).id.startswith("1234")


def test_an_id_that_fits_several() -> None:
    engine = FakeEngine(container("c1", "abcd0000"), container("c2", "abcd1111"))
    with pytest.raises(UserError, match=r'starts with "abcd" \(c1, c2\): give more of it\.'):
        directory(engine).container("abcd")


def test_an_engine_that_does_not_answer_is_no_error_here() -> None:
    engine = FakeEngine()
    engine.dead = True
    book = directory(engine)
    assert book.container("c1") is None
    assert book.problem == "connection refused"
    book.container("c2")
    assert engine.listings == 1  # it may have cost a time-out


def test_the_owners_name_and_then_the_typed_one_win() -> None:
    guest, owner = (container("guest", "aaaa", f"container:{'b' * 64}", os.getpid()),
                    container("owner", "bbbb", pid=os.getpid()))
    book = directory(FakeEngine(guest, owner))
    book.inspect(guest.id)
    assert book.names[HERE] == "guest"
    book.inspect(owner.id)
    assert book.names[HERE] == "owner"
    book.inspect(guest.id)
    assert book.names[HERE] == "owner"
    book.learn(f"/proc/{os.getpid()}/ns/net", "typed", Claim.TYPED)
    book.inspect(owner.id)
    assert book.names[HERE] == "typed"


def test_a_file_that_is_gone_has_no_name(tmp_path: Path) -> None:
    assert directory(None, {"gone": str(tmp_path / "gone")}).names == {}


def test_refresh_finds_a_container_that_started_later(clock: list[float]) -> None:
    engine = FakeEngine()
    book = directory(engine)
    assert not book.refresh(HERE)
    engine.known = [container("new", "aaaa", pid=os.getpid()), container("old", "bbbb", pid=os.getpid()),
                    container("dead", "cccc", state="exited")]
    assert not book.refresh(HERE)  # within the same second: not asked
    assert engine.listings == 1
    clock[0] += 1.1
    assert book.refresh(HERE)
    assert book.names[HERE] == "new"
    assert engine.inspections == ["new"]  # newest first, and no further than needed
    assert book.refresh(HERE)
    assert engine.listings == 2


def test_a_namespace_that_nobody_knows_causes_no_storm(clock: list[float]) -> None:
    engine = FakeEngine()
    book = directory(engine)
    for _ in range(6000):  # ten minutes of ten events a second
        clock[0] += 0.1
        assert not book.refresh(4711)
    assert engine.listings < 20
    book.refresh(4712)  # another one does not wait for it
    assert engine.listings < 21


def test_many_such_namespaces_are_asked_for_once_a_second_together(clock: list[float]) -> None:
    engine = FakeEngine()
    book = directory(engine)
    for number in range(5000):
        clock[0] += 0.01
        book.refresh(number)
    assert engine.listings <= 51


def test_a_restarted_container_is_inspected_again(clock: list[float]) -> None:
    running = container("c1", "aaaa", pid=os.getpid())
    engine = FakeEngine(running)
    book = directory(engine)
    book.inspect(running.id)
    book.refresh(4711)
    assert engine.inspections == ["c1"]  # still the same process
    book.names.clear()  # as if its namespace were another one than it was
    clock[0] += 1.1
    assert book.refresh(HERE)
    assert engine.inspections == ["c1", "c1"]


def test_an_inode_goes_to_the_next_namespace() -> None:
    book = directory(None)
    assert book.learn("/proc/self/ns/net", "first", Claim.OWNER) == HERE
    assert (book.learn("/proc/self/ns/net", "guest", Claim.GUEST), book.names[HERE]) == (HERE, "first")
    book.paths[HERE] = f"/proc/{2**22 + 1}/ns/net"  # its process ended
    assert (book.learn("/proc/self/ns/net", "second", Claim.GUEST), book.names[HERE]) == (HERE, "second")
    book.forget(HERE)
    assert (book.names, book.paths) == ({}, {})
