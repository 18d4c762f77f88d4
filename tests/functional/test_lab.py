"""The built-in lab, made under other names than the user's own so that a lab that is up stays as it is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functional.pinging import answers
from tracer.errors import UserError
from tracer.topology import lab
from tracer.topology.netns import in_namespace


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lab, "PREFIX", f"dnt{os.getpid()}-lab-")
    yield
    lab.down()


def machine() -> dict[str, str]:
    """The state of the machine's own namespace, as far as anything could have changed it."""
    commands = {"links": "ip -o link", "addresses": "ip -o addr", "routes": "ip route show table all",
                "routes6": "ip -6 route show table all", "rules": "ip rule", "nftables": "nft list ruleset"}
    state = {name: subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
             for name, command in commands.items()}
    settings = ("ipv4/ip_forward", "ipv4/conf/all/forwarding", "bridge/bridge-nf-call-iptables",
                *(f"ipv6/conf/{which}/{name}" for which in ("all", "default")
                  for name in ("forwarding", "accept_dad", "dad_transmits", "accept_ra")))
    files = {name: Path("/proc/sys/net", name) for name in settings}
    return state | {name: file.read_text() for name, file in files.items() if file.exists()}


def test_up_and_down_leave_the_machine_as_it_was() -> None:
    before = machine()
    assert not lab.status().up
    assert lab.up()
    assert lab.status().up
    assert machine() == before
    assert not lab.up()  # it is up: nothing to do
    assert lab.down()
    assert not lab.down()
    assert machine() == before
    assert lab.status().namespaces == {}


def test_answers_at_once_where_docker_would_let_it() -> None:
    lab.up()
    for node, address in (("c1", "203.0.113.1"), ("c1", "172.17.0.3"), ("c3", "172.18.0.1"), ("host", "172.18.0.2"),
                          ("outside", "198.51.100.2"), ("c1", "fd00:17::3"), ("c2", "2001:db8:2::1"),
                          ("c3", "fd00:18::1"), ("host", "fd00:17::2")):
        assert answers(lab.path(node), address), f"{node} -> {address}"
    for node, address in (("c1", "172.18.0.2"), ("c3", "fd00:17::2")):  # Docker keeps its networks apart
        assert not answers(lab.path(node), address, seconds=0.2), f"{node} -> {address}"


def test_the_rules_are_as_iptables_shows_dockers() -> None:
    lab.up()
    saved = in_namespace(lab.path("host"), lambda: subprocess.run(
        ["iptables-save"], capture_output=True, text=True, check=True).stdout).splitlines()
    assert ":FORWARD DROP [0:0]" in saved
    forward = [line for line in saved if line.startswith("-A FORWARD")]
    assert forward[0] == "-A FORWARD -j DOCKER-USER"
    assert forward[-1] == "-A FORWARD -i docker0 -o docker0 -j ACCEPT"
    assert "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE" in saved
    assert "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.3:80" in saved


def test_forwarding_is_on_in_the_labs_host_only() -> None:
    lab.up()

    def forwarding() -> tuple[str, str]:
        return tuple(Path("/proc/sys/net", name).read_text().strip()  # type: ignore[return-value]
                     for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"))

    assert in_namespace(lab.path("host"), forwarding) == ("1", "1")
    assert in_namespace(lab.path("c1"), forwarding) == ("0", "0")


def test_repairs_what_an_interrupted_call_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(lab, "_make_rules", lambda: None)  # killed there: nothing after it and no clearing up
        killed.setattr(lab, "_make_ready", lambda: None)
        lab.up()
    assert not lab.status().up
    assert set(lab.status().namespaces) == set(lab.NODES)
    assert lab.up()
    assert lab.status().up
    subprocess.run(["ip", "netns", "del", f"{lab.PREFIX}c2"], check=True)  # somebody removed a part
    assert not lab.status().up
    assert lab.up()
    assert answers(lab.path("c1"), "172.17.0.3")


def test_a_failure_removes_what_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"^The lab needs iptables-restore, which is not installed: install "):
        lab.up()
    assert lab.status().namespaces == {}


def test_a_broken_rule_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "rules", lambda *_, **__: "*filter\n-A FORWARD -m nothing\nCOMMIT\n")
    with pytest.raises(UserError, match=r"^iptables-restore cannot write the lab's rules \(.+\): ") as error:
        lab.up()
    assert "\n" not in str(error.value)
    assert lab.status().namespaces == {}
