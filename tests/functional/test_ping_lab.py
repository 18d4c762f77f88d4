"""`dnettrace ping` in the built-in lab: ways, ends, options, and what it leaves behind."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.functional.conftest import Dnettrace, of_another_run, program
from tests.functional.way import from_host, read, switched, to_host

pytestmark = pytest.mark.usefixtures("lab")


@pytest.mark.parametrize("version", ["-4", "-6"])
def test_one_bridge_in_both_families(dnettrace: Dnettrace, version: str) -> None:
    output = read(dnettrace("--lab", "ping", "c1", "c2", "-c", "2", "-i", "0.1", version, "--json"))
    assert output.way(output.only("request", 2)) == switched("c1", "c2")
    assert output.way(output.only("reply", 2)) == switched("c2", "c1")
    assert output.only("request", 2)["packet"]["family"] == int(version[1])
    assert output.only("request", 2)["packet"]["proto"] == {"-4": "icmp", "-6": "icmpv6"}[version]


def test_host_and_gateway(dnettrace: Dnettrace) -> None:
    output = read(dnettrace("--lab", "ping", "host", "c1", "-c", "1", "--json"))
    assert output.way(output.only("request")) == from_host("c1")
    assert output.way(output.only("reply")) == to_host("c1")


def test_an_unreachable_destination_ends_somewhere(dnettrace: Dnettrace) -> None:
    output = read(dnettrace("--lab", "ping", "c1", "172.17.0.99", "-c", "1", "--json"), status=1)
    end = output.only("request")["end"]
    assert (end["result"], end["node"], end["reason"]) == ("dropped", "c1", "NEIGH_FAILED")
    assert output.summary["sent"] == 1
    assert output.summary["answered"] == 0


def test_a_firewall_s_drop_ends_the_wait(dnettrace: Dnettrace) -> None:
    began = time.monotonic()
    output = read(dnettrace("--lab", "ping", "c1", "c3", "-c", "1", "-W", "30", "--json"), status=1)
    assert time.monotonic() - began < 10
    end = output.only("request")["end"]
    assert (end["result"], end["node"], end["device"], end["reason"]) == ("dropped", "host", "docker0", "NETFILTER_DROP")


def test_no_route_says_that_it_never_left(dnettrace: Dnettrace) -> None:
    done = dnettrace("--lab", "ping", "outside", "c1", "-c", "1")
    assert done.returncode == 1
    assert "never left: no route to 172.17.0.2" in done.stdout


def test_size_and_ttl(dnettrace: Dnettrace) -> None:
    output = read(dnettrace("--lab", "ping", "c1", "c2", "-c", "1", "-s", "100", "--ttl", "9", "--json"))
    assert output.only("request")["packet"]["length"] == 128
    assert read(dnettrace("--lab", "ping", "c1", "203.0.113.1", "-c", "1", "--ttl", "1", "--json"),
                status=1).only("error")["end"]["result"] == "delivered"


def test_a_policy_rule_s_table_and_the_rule(dnettrace: Dnettrace) -> None:
    def on_host(*argv: str) -> None:
        subprocess.run(["nsenter", "--net=/run/netns/dnettrace-lab-host", "ip", *argv], check=True)

    on_host("rule", "add", "from", "172.17.0.2", "lookup", "100")
    on_host("route", "add", "203.0.113.0/24", "via", "198.51.100.1", "table", "100")
    try:
        output = read(dnettrace("--lab", "ping", "c1", "203.0.113.1", "-c", "1", "--json"))
    finally:
        on_host("rule", "del", "from", "172.17.0.2", "lookup", "100")
        on_host("route", "flush", "table", "100")
    (route,) = [hop["route"] for hop in output.only("request")["hops"] if hop["route"] and hop["node"] == "host"]
    assert (route["table"], route["destination"], route["gateway"]) == ("100", "203.0.113.0/24", "198.51.100.1")
    assert route["rule"] == "from 172.17.0.2/32 lookup 100"


def test_json_is_as_the_design_defines_it(dnettrace: Dnettrace) -> None:
    output = read(dnettrace("--lab", "ping", "c1", "c2", "-c", "1", "--json"))
    assert output.start.keys() >= {"type", "schema", "version", "kernel", "probes"}
    assert output.start["schema"] == 1
    request, reply = output.only("request"), output.only("reply")
    assert request.keys() >= {"type", "id", "flow", "direction", "seq", "packet", "hops", "end", "complete", "lost_events"}
    assert (request["direction"], reply["direction"]) == ("request", "reply")
    assert request["flow"] == reply["flow"]
    assert request["packet"].keys() >= {"family", "proto", "src", "dst", "sport", "dport", "length", "icmp_type", "icmp_id",
                                        "icmp_seq"}
    for hop in request["hops"]:
        assert hop.keys() >= {"t_ns", "netns", "node", "device", "ifindex", "stage", "role", "rules", "rewrite", "route",
                              "detail"}
    assert request["end"].keys() >= {"result", "node", "device", "reason", "rule", "cause", "mend"}
    assert output.summary.keys() >= {"type", "sent", "answered", "journeys", "events", "lost_events", "bridges"}


def test_output_into_a_pipe_has_no_colour_and_no_cut_line(dnettrace: Dnettrace) -> None:
    done = dnettrace("--lab", "ping", "c1", "c2", "-c", "1", env=os.environ | {"COLUMNS": "40"})
    assert "\x1b" not in done.stdout
    assert re.search(r"as a SWITCH: to the .*02:42:ac:11:00:03.*\)", done.stdout)
    assert "…" not in done.stdout


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_a_terminal_s_width_is_kept(columns: int) -> None:
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    child = subprocess.Popen([*program(), "--lab", "ping", "c1", "c2", "-c", "1"], stdout=theirs, stdin=subprocess.DEVNULL,
                             env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    text = b""
    while True:
        try:
            text += os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
    os.close(ours)
    assert child.wait() == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).splitlines()
    assert max(map(len, lines)) <= columns
    assert any("SWITCH" in line for line in lines)


def test_ctrl_c_ends_with_the_summary() -> None:
    child = subprocess.Popen([*program(), "--lab", "ping", "c1", "c2", "-i", "0.2", "--json"], stdout=subprocess.PIPE,
                             text=True)
    assert child.stdout
    lines = [child.stdout.readline() for _ in range(4)]
    child.send_signal(signal.SIGINT)
    rows = [json.loads(line) for line in (*lines, *child.stdout)]
    assert child.wait(timeout=20) == 130
    assert rows[-1]["type"] == "summary"
    assert rows[-1]["sent"] >= 1


def test_a_closed_pipe_is_no_error() -> None:
    child = subprocess.Popen([*program(), "--lab", "ping", "c1", "c2", "-c", "5", "-i", "0.1"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    assert child.stdout and child.stderr
    child.stdout.readline()
    child.stdout.close()
    assert child.wait(timeout=30) == 0
    assert child.stderr.read() == ""


def bpf_of(pid: int) -> list[str]:
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(fd)
        except OSError:
            continue
        if "bpf" in target:
            found.append(target)
    return found


def test_kill_9_in_mid_run_leaves_nothing() -> None:
    namespaces = own_namespaces()
    tables = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout
    others = loaded_programs()
    child = subprocess.Popen([*program(), "--lab", "ping", "c1", "172.17.0.99", "-i", "0.2", "--json"],
                             stdout=subprocess.PIPE, text=True)
    assert child.stdout
    child.stdout.readline()  # started
    time.sleep(0.5)
    held = bpf_of(child.pid)
    assert sum("bpf-prog" in h for h in held) >= 4, held
    before = loaded_programs() - others
    child.kill()
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 10
    while loaded_programs() & before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not loaded_programs() & before
    assert own_namespaces() == namespaces
    assert subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout == tables
    assert not list(Path("/tmp").glob(f"dnettrace-{child.pid}-*"))


def own_namespaces() -> list[str]:
    return sorted(name for name in os.listdir("/run/netns") if not of_another_run(name))


def loaded_programs() -> set[int]:
    """Ids of the loaded BPF programs that have our names, by bpf(BPF_PROG_GET_NEXT_ID)."""
    import ctypes
    import struct

    from tracer.kernel.architecture import architecture
    from tracer.kernel.catalogue import CATALOGUE

    names = {probe.name[:15] for probe in CATALOGUE} | {f"hook_{slot}" for slot in range(12)}
    libc, number, found, last = ctypes.CDLL(None, use_errno=True), architecture().bpf, set(), 0
    while True:
        attr = ctypes.create_string_buffer(struct.pack("II", last, 0), 16)
        if libc.syscall(number, 11, attr, 16) < 0:
            return found
        last = struct.unpack_from("I", attr, 4)[0]
        fd = libc.syscall(number, 13, ctypes.create_string_buffer(struct.pack("I", last), 16), 16)
        if fd < 0:
            continue
        info = ctypes.create_string_buffer(256)
        attr = ctypes.create_string_buffer(struct.pack("IIQ", fd, 256, ctypes.addressof(info)), 16)
        libc.syscall(number, 15, attr, 16)
        os.close(fd)
        if info.raw[64:80].partition(b"\0")[0].decode() in names:
            found.add(last)
