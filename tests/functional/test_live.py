"""Real traffic on the real engine's network, followed and told."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.functional.conftest import CHECKOUT, Dnettrace, program
from tests.functional.engine import Engine
from tests.functional.pinging import answers
from tests.functional.way import switched
from tracer.topology.netns import in_namespace

Row = dict[str, Any]


class Live:
    """What a run of `live --json` said, once it ended."""

    rows: list[Row]
    status: int

    @property
    def journeys(self) -> list[Row]:
        return [row for row in self.rows if row["type"] == "journey"]

    def of(self, kind: str) -> list[Row]:
        return [row for row in self.journeys if row["kind"] == kind]

    @property
    def summary(self) -> Row:
        return self.rows[-1]


@pytest.fixture
def live(engine: Engine, tmp_path: Path) -> Callable[..., Any]:
    @contextmanager
    def run(*arguments: str) -> Iterator[Live]:
        """Runs while the body does; ended by Ctrl-C unless it ends by itself."""
        found = Live()
        output = tmp_path / "live.jsonl"
        with output.open("w") as file:  # a pipe that nobody reads would hold it up
            child = subprocess.Popen(["nsenter", f"--net={engine.host_netns}", *program(), "live", "--json", *arguments],
                                     stdout=file, env=engine.env(), cwd=CHECKOUT)
        try:
            deadline = time.monotonic() + 20
            while not output.stat().st_size and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.6)  # the containers' namespaces are read
            yield found
            time.sleep(0.6)  # what a socket holds is told a moment later
            child.send_signal(signal.SIGINT)
            found.status = child.wait(timeout=30)
            found.rows = [json.loads(line) for line in output.read_text().splitlines()]
        finally:
            child.kill()
            child.wait()

    return run


def inside(engine: Engine, name: str) -> str:
    return f"/proc/{engine.pid(name)}/ns/net"


def way(journey: Row) -> list[str]:
    """As Output.way() of way.py, without the routes that containers look up for themselves."""
    def device(hop: Row) -> str:
        name = hop["device"] or "-"
        return "veth>" + hop["detail"].partition("peer of ")[2].partition(":")[0] if "peer of " in hop["detail"] else name
    return [" ".join(filter(None, (hop["node"], device(hop), hop["stage"], hop["role"]))) for hop in journey["hops"]
            if hop["stage"] != "route"]


def test_a_ping_and_its_reply(live: Callable[..., Any], engine: Engine) -> None:
    with live("icmp") as told:
        assert answers(inside(engine, "c1"), "172.17.0.3")
    request, reply = told.journeys
    assert way(request) == [hop for hop in switched("c1", "c2") if " route" not in hop]
    assert way(reply) == [hop for hop in switched("c2", "c1") if " route" not in hop]
    assert [j["kind"] for j in told.journeys] == ["request", "reply"]
    assert [(j["end"]["result"], j["end"]["node"]) for j in told.journeys] == [("delivered", "c2"), ("delivered", "c1")]
    assert told.status == 0 and told.summary["journeys"] == 2 and told.summary["lost"] == {}


def test_the_way_back_is_followed_though_the_filter_does_not_match_it(live: Callable[..., Any], engine: Engine) -> None:
    with live("src host 172.17.0.2 and dst host 203.0.113.1") as told:
        assert answers(inside(engine, "c1"), "203.0.113.1")
    request, reply = told.of("request")[0], told.of("reply")[0]
    assert [h["rewrite"]["src"] for h in request["hops"] if h["rewrite"]] == [["172.17.0.2", "198.51.100.2"]]
    assert [h["rewrite"]["dst"] for h in reply["hops"] if h["rewrite"]] == [["198.51.100.2", "172.17.0.2"]]
    assert (reply["source"], reply["end"]["node"]) == (f"{engine.name}-wan", "c1")


def test_a_published_port_from_the_first_packet_to_the_last(live: Callable[..., Any], engine: Engine) -> None:
    with live("tcp dst port 8080") as told:
        connect = socket.create_connection
        in_namespace(engine.wan_netns, lambda: connect(("198.51.100.2", 8080), 5).close())
        time.sleep(0.2)
    syn = told.journeys[0]
    assert syn["packet"]["tcp_flags"] == "SYN"
    assert next(h["rewrite"]["dport"] for h in syn["hops"] if h["rewrite"]) == [8080, 80]
    assert syn["end"]["node"] == "c2"
    (answer,) = [j for j in told.of("reply") if j["packet"]["tcp_flags"] == "SYN ACK"]
    assert answer["end"]["node"] == f"{engine.name}-wan"
    assert [(j["packet"], j["end"]) for j in told.journeys if j["end"]["result"] != "delivered"] == []


def test_what_a_closed_connection_takes_is_no_drop(live: Callable[..., Any], engine: Engine) -> None:
    """The kernel gives no reason for what a TIME_WAIT socket frees, and calls it a drop."""
    server = in_namespace(inside(engine, "c2"), lambda: socket.create_server(("", 9090)))
    with server, live("tcp port 9090") as told:
        connect = socket.create_connection
        client = in_namespace(inside(engine, "c1"), lambda: connect(("172.17.0.3", 9090), 5))
        served, _address = server.accept()
        client.close()
        time.sleep(0.2)
        served.close()
    (fin,) = [j for j in told.of("reply") if "FIN" in j["packet"]["tcp_flags"]]
    assert (fin["end"]["result"], fin["end"]["node"], fin["hops"][-1]["inferred"]) == ("delivered", "c1", True)
    assert "TIME_WAIT" in fin["end"]["detail"]
    assert {j["end"]["result"] for j in told.journeys} == {"delivered"}


def test_only_one_container_and_one_that_starts_later(live: Callable[..., Any], engine: Engine) -> None:
    try:
        with live("--container", "late", "icmp") as told:
            engine.run("late")
            time.sleep(1.0)
            assert answers(inside(engine, "c1"), "172.17.0.3")
            address = engine.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "late")
            assert answers(inside(engine, "c1"), address)
            time.sleep(0.5)
        assert {(j["source"], j["target"]) for j in told.journeys} == {("c1", "late"), ("late", "c1")}
    finally:
        engine.remove("late")


def test_drops_with_their_cause(live: Callable[..., Any], engine: Engine) -> None:
    engine.docker("network", "create", "apart")
    try:
        engine.run("c9", "--network", "apart")
        address = engine.docker("inspect", "-f", "{{.NetworkSettings.Networks.apart.IPAddress}}", "c9")
        with live("--drops", "icmp") as told:
            assert answers(inside(engine, "c1"), "172.17.0.3")
            for _turn in range(2):
                assert not answers(inside(engine, "c1"), address, 0.6)
        assert len(told.journeys) == 2, told.journeys
        first, second = told.journeys
        for drop in first, second:
            assert (drop["source"], drop["end"]["result"], drop["end"]["reason"]) == ("c1", "dropped", "NETFILTER_DROP")
            assert drop["end"]["cause"] == "networks_isolated"
        assert first["end"]["rule"] is None  # from the next packet of this flow on, rules are traced
        bridge = "br-" + engine.docker("network", "inspect", "-f", "{{.Id}}", "apart")[:12]
        assert second["end"]["rule"]["rule"] == (
            f"-A PREROUTING -d {address}/32 ! -i {bridge} -j DROP" if engine.guards else
            f"-A DOCKER-ISOLATION-STAGE-2 -o {bridge} -j DROP")
    finally:
        engine.remove("c9")
        engine.docker("network", "rm", "apart")


def test_only_one_network(live: Callable[..., Any], engine: Engine) -> None:
    engine.docker("network", "create", "other")
    try:
        engine.run("c8", "--network", "other")
        with live("--network", "other", "icmp") as told:
            assert answers(inside(engine, "c1"), "172.17.0.3")
            assert answers(inside(engine, "c8"), "203.0.113.1")
        assert {(j["source"], j["end"]["node"]) for j in told.journeys} == {
            ("c8", f"{engine.name}-wan"), (f"{engine.name}-wan", "c8")}
    finally:
        engine.remove("c8")
        engine.docker("network", "rm", "other")


def test_tcp_problems_are_resets_and_what_is_sent_again(live: Callable[..., Any], engine: Engine) -> None:
    def refused() -> None:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("172.17.0.3", 81), 5)

    with live("--tcp-problems") as told:
        in_namespace(inside(engine, "c1"), refused)
        in_namespace(inside(engine, "c1"), lambda: socket.create_connection(("172.17.0.3", 80), 5).close())
    assert [(j["source"], j["packet"]["tcp_flags"], j["problem"]) for j in told.journeys] == [("c2", "RST ACK", "reset")]


def test_silence_says_what_passed(live: Callable[..., Any], engine: Engine) -> None:
    with live("tcp port 9") as told:
        for _turn in range(3):
            assert answers(inside(engine, "c1"), "172.17.0.3")
        time.sleep(3.5)
    silence = next(row for row in told.rows if row["type"] == "silence")
    assert silence["packets"] >= 6 and told.journeys == []


@pytest.mark.parametrize(("arguments", "sentence"), [
    (("nonsense here",), "syntax error"),
    (("wlan type mgt",), "(`man 7 pcap-filter` has what can be said)"),
    (("--network", "nope"), "No Docker network is called \"nope\""),
])
def test_bad_input_is_one_sentence(dnettrace: Dnettrace, engine: Engine, arguments: tuple[str, ...], sentence: str) -> None:
    done = dnettrace("live", *arguments, netns=engine.host_netns, env=engine.env())
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr and done.stderr.count("\n") == 1


def test_a_count_and_a_closed_pipe_end_it(dnettrace: Dnettrace, engine: Engine) -> None:
    path = inside(engine, "c1")
    ping = subprocess.Popen(["nsenter", f"--net={path}", "sh", "-c", "exit 0"])
    ping.wait()
    child = subprocess.Popen(["nsenter", f"--net={engine.host_netns}", *program(), "live", "icmp", "-c", "2"],
                             stdout=subprocess.PIPE, text=True, env=engine.env(), cwd=CHECKOUT)
    assert child.stdout
    child.stdout.readline()
    time.sleep(0.6)
    assert answers(path, "172.17.0.3") and answers(path, "172.17.0.3")
    out, _err = child.communicate(timeout=20)
    assert child.returncode == 0
    assert out.count("echo re") == 2
    child = subprocess.Popen(["sh", "-c", f"nsenter --net={engine.host_netns} {' '.join(program())} live icmp | head -n 2"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=engine.env(), cwd=CHECKOUT)
    deadline = time.monotonic() + 30
    while child.poll() is None and time.monotonic() < deadline:
        answers(path, "172.17.0.3")
        time.sleep(0.3)
    assert child.poll() is not None and child.communicate()[1] == ""


def test_under_overload_whole_journeys_are_left_out(live: Callable[..., Any], engine: Engine) -> None:
    """A flood that no Python can tell: no event is lost, and each journey that is told is whole."""
    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            end = time.monotonic() + 3
            while (now := time.monotonic_ns()) < end * 1e9:
                for turn in range(100):  # no two alike: which are followed is told from what they hold
                    one.sendto((now + turn).to_bytes(8, "big"), ("172.17.0.3", 9999))

    with live("udp port 9999") as told:
        in_namespace(inside(engine, "c1"), flood)
        time.sleep(1)
    assert told.summary["lost"] == {} and told.summary["share"] < 1
    whole = [j for j in told.journeys if j["kind"] == "request" and j["complete"]]
    assert len(whole) > 100
    starts = [j["hops"][0]["node"] for j in whole]
    assert starts.count("c1") > 0.98 * len(starts)  # one may begin half-way where the share rises
