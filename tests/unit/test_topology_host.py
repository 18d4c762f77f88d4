"""What is said about words that name nothing, or nothing that a packet could be sent from. Nothing here needs root."""

from __future__ import annotations

import os
from typing import cast

import pytest

from tests.unit.test_topology_directory import FakeEngine, container
from tracer.errors import UserError
from tracer.topology import lab
from tracer.topology.engine import Engine
from tracer.topology.host import Host

OWN = f"/proc/{os.getpid()}/ns/net"


@pytest.fixture(autouse=True)
def no_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "PREFIX", "dnettrace-test-of-words-")


def host(*containers: object, dead: bool = False) -> Host:
    engine = FakeEngine(*containers)  # type: ignore[arg-type]
    engine.dead = dead
    return Host(OWN, cast(Engine, engine), dict)


def said(host: Host, word: str) -> str:
    with pytest.raises(UserError) as error:
        host.find(word)
    return str(error.value)


def test_nearest_names() -> None:
    some = host(container("c1", "aaaa"), container("c2", "bbbb"), container("database", "cccc"))
    assert said(some, "c9") == 'No container or namespace is called "c9": did you mean c1, c2?'
    assert said(some, "databse") == 'No container or namespace is called "databse": did you mean database?'
    assert said(some, "hots") == 'No container or namespace is called "hots": did you mean host?'
    assert said(some, "xyz") == \
        'No container or namespace is called "xyz": `docker ps` and `ip netns` show the names.'
    assert said(some, "netns:xyz").startswith('No container or namespace is called "netns:xyz": ')


def test_no_engine() -> None:
    assert said(host(dead=True), "c9") == (
        'No container or namespace is called "c9" and no Docker engine answers at /fake.sock (connection refused): '
        "start it, or name a namespace with netns:NAME.")
    assert said(Host(OWN, None, dict), "c9").startswith(
        'No container or namespace is called "c9" and no Docker engine answers at /var/run/docker.sock: start it')


def test_containers_that_do_not_run() -> None:
    some = host(container("c5", "aaaa", state="exited"), container("c6", "bbbb", state="restarting"))
    assert said(some, "c5") == "c5 is not running (exited): start it with `docker start c5`."
    assert said(some, "c6") == "c6 is not running (restarting): `docker logs c6` tells why it ends again and again."


def test_a_container_of_another_machines_engine() -> None:
    assert said(host(container("c1", "aaaa", pid=2**22 + 1)), "c1").endswith(
        "its process ended, or its engine runs on another machine.")


@pytest.mark.parametrize("word", ["pid:x", f"pid:{2**22 + 1}", "pid:-1", "pid:1/../2"])
def test_processes_that_do_not_exist(word: str) -> None:
    assert said(host(), word).startswith(f'There is no process "{word[4:]}": ')


def test_words_for_one_namespace_are_one_place() -> None:
    some = host(container("c4", "aaaa", mode="host", pid=os.getpid()))
    place = some.find("c4")
    assert (place.word, place.name, place.netns) == ("c4", "host", some.find("host").netns)
    assert place.notes == ("c4 runs with --network host: to the network it is the host",)
    assert some.find(f"pid:{os.getpid()}").name == "host"
    with pytest.raises(UserError, match=r"are one network namespace \(host = c4\).*`dnettrace ping host 127\.0\.0\.1`"):
        some.destination("c4", some.find("host"))
    with pytest.raises(UserError, match=r"are the same \(host\)"):
        some.destination("host", some.find("host"))


def test_an_address_of_the_version_that_was_not_asked_for() -> None:
    some = host()
    with pytest.raises(UserError, match=r"^127\.0\.0\.1 is an IPv4 address: leave out -6\.$"):
        some.destination("127.0.0.1", some.find("host"), 6)


def test_the_lab_is_not_up() -> None:
    with pytest.raises(UserError, match=r"^The lab is not up: start it with `sudo dnettrace lab up`\.$"):
        Host.lab()


def test_the_lab_has_such_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "named", lambda: {"c1": "x"})
    assert said(host(), "c1") == ('No container or namespace is called "c1", but the lab has one: put --lab before the '
                                  "command, as in `dnettrace --lab ping c1 host`.")
