"""`dnettrace doctor` on this machine, and on one that lacks something."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.conftest import Dnettrace, Done, program
from tests.functional.engine import NETNS, Engine, delete_namespace, in_netns
from tracer.kernel import syscall
from tracer.kernel.trial import try_mechanisms
from tracer.topology.snapshot import read_namespace

NO_ENGINE = {"DOCKER_HOST": "unix:///nowhere"}
HOST = f"dnt{os.getpid()}-doctor"


def told(done: Done, status: int) -> dict[str, Any]:
    assert done.returncode == status, done.stderr or done.stdout
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def states(found: dict[str, Any]) -> dict[str, str]:
    return {command["name"]: command["state"] for command in found["commands"]}


def lacks(found: dict[str, Any], command: str = "ping") -> dict[str, str]:
    return {lack["what"]: lack["mend"] for row in found["commands"] if row["name"] == command for lack in row["lacks"]}


def modules() -> set[str]:
    path = Path("/proc/modules")
    return {line.split()[0] for line in path.read_text().splitlines()} if path.exists() else set()


@pytest.fixture
def host() -> Iterator[str]:
    """An empty namespace that the command calls the host."""
    subprocess.run(["ip", "netns", "add", HOST], check=True)
    yield str(NETNS / HOST)
    delete_namespace(HOST)


def test_where_an_engine_runs_ping_is_whole(dnettrace: Dnettrace, engine: Engine) -> None:
    found = told(dnettrace("doctor", "--json", netns=engine.host_netns, env=engine.env()), 0)
    assert found["whole"] is True
    assert all(tried["works"] for tried in found["mechanisms"] if tried["name"] == "raw tracepoint")
    [asked] = [state for state in found["engines"] if state["chosen"]]
    assert asked["name"].startswith("Docker ")
    assert asked["containers"] >= 2
    assert sum(found["rules"].values()) > 0  # Docker's
    assert found["sysctls"]["net.ipv4.ip_forward"] == "1"


def test_the_lab_s_host(dnettrace: Dnettrace, lab: None) -> None:
    found = told(dnettrace("--lab", "doctor", "--json"), 0)
    assert (found["where"], found["engines"]) == ("the lab's host", [])
    assert found["sysctls"]["net.ipv4.ip_forward"] == "1"
    assert "net.ipv4.conf.docker0.rp_filter" in found["sysctls"]


def test_settings_and_rules_are_the_namespace_s_own(dnettrace: Dnettrace, host: str) -> None:
    def inside(*argv: str) -> None:
        assert in_netns(host, *argv).returncode == 0, argv

    inside("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv4.conf.lo.rp_filter=1")
    inside("nft", "add table ip mine { chain forward { type filter hook forward priority 0; accept; drop; }; }")
    inside("iptables-nft", "-A", "FORWARD", "-j", "ACCEPT")
    done = in_netns(host, "iptables-legacy", "-A", "FORWARD", "-j", "ACCEPT")
    found = told(dnettrace("doctor", "--json", netns=host, env=os.environ | NO_ENGINE), 1)
    assert found["rules"] == {"nftables": 2, "iptables-nft": 1, "iptables-legacy": int(done.returncode == 0)}
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["ip_forward"]["state"] == "less"
    assert checks["rp_filter"]["text"].startswith("strict")
    if not done.returncode:
        assert "both backends have rules" in checks["iptables"]["text"]
    assert set(lacks(found)) - {"nftables' rules"} == {"container names"}  # which a logger of iptables-legacy's may forbid


def test_looking_loads_nothing_and_leaves_nothing(dnettrace: Dnettrace, host: str) -> None:
    """Not even an empty table of iptables-legacy, which asking for it by name makes."""
    def now() -> tuple[str, ...]:
        names = in_netns(host, "cat", "/proc/net/ip_tables_names").stdout
        return names, in_netns(host, "nft", "list", "ruleset").stdout, " ".join(sorted(modules()))

    before = now()
    told(dnettrace("doctor", "--json", netns=host, env=os.environ | NO_ENGINE), 1)
    assert now() == before


@pytest.mark.parametrize(("address", "what"), [
    ("nonsense", "a DOCKER_HOST that is one"), ("unix:///nowhere", "container names"),
    ("tcp://127.0.0.1:9", "container names")])
def test_an_engine_that_is_none(dnettrace: Dnettrace, host: str, address: str, what: str) -> None:
    found = told(dnettrace("doctor", "--json", netns=host, env=os.environ | {"DOCKER_HOST": address}), 1)
    assert set(lacks(found)) == {what}
    assert states(found)["ping"] == ("bad" if address == "nonsense" else "less")
    assert all(tried["works"] for tried in found["mechanisms"] if tried["name"] == "raw tracepoint")


def test_without_root(host: str) -> None:
    done = subprocess.run(["setpriv", "--reuid", "65534", "--clear-groups", *program(), "doctor", "--json"],
                          text=True, capture_output=True, cwd="/", env=os.environ | NO_ENGINE)
    if "Permission denied" in done.stderr:
        pytest.skip("the checkout is not readable for others")
    found = told(done, 1)
    assert states(found) == {"ping": "bad", "live": "bad", "record": "bad", "replay": "good"}
    assert lacks(found)["root"] == "run it with sudo"
    assert found["mechanisms"] == []
    assert "net.ipv4.ip_forward" in found["sysctls"]


def test_without_bcc(tmp_path: Path, host: str, dnettrace: Dnettrace) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError('no bcc here')\n")
    found = told(dnettrace("doctor", "--json", netns=host, env=os.environ | NO_ENGINE | {"PYTHONPATH": str(tmp_path)}), 1)
    assert "python3-bpfcc" in lacks(found)["bcc"]
    assert (found["software"]["bcc"], states(found)["ping"], states(found)["replay"]) == (None, "bad", "good")


def test_without_btf(host: str) -> None:
    """In a mount namespace where nothing is in its folder."""
    done = subprocess.run(["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "sh",
                           *program(), "doctor", "--json"], text=True, capture_output=True, env=os.environ | NO_ENGINE)
    found = told(done, 1)
    assert "CONFIG_DEBUG_INFO_BTF=y" in lacks(found)["BTF"]
    assert states(found) == {"ping": "bad", "live": "bad", "record": "bad", "replay": "good"}
    assert found["mechanisms"] == []


def test_rights_that_root_does_not_have(host: str) -> None:
    drop = ("--bounding-set", "-sys_admin,-bpf", "--inh-caps", "-sys_admin,-bpf")
    done = subprocess.run(["setpriv", *drop, *program(), "doctor", "--json"], text=True, capture_output=True,
                          env=os.environ | NO_ENGINE)
    found = told(done, 1)
    assert found["rights"]["lacking"] == ["CAP_SYS_ADMIN", "CAP_BPF"]
    assert "--privileged" in lacks(found)["rights"]


def test_a_mechanism_that_the_kernel_refuses(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = syscall.load_program

    def refuse(name: str, code: bytes, kind: int, *rest: int) -> int:
        if kind == syscall.TYPE_NETFILTER:
            raise OSError(errno.EPERM, "EPERM: not here")
        return load(name, code, kind, *rest)

    monkeypatch.setattr(syscall, "load_program", refuse)
    found = try_mechanisms(read_namespace(host, "host", {}))
    assert {tried.name: tried.works for tried in found.mechanisms if "link" in tried.name or "raw" in tried.name} == {
        "raw tracepoint": True, "netfilter link": False}
    assert "EPERM: not here" in next(tried.why for tried in found.mechanisms if tried.name == "netfilter link")
    assert (found.problem, found.problem_of_streams) == (None, None)


@pytest.mark.parametrize("width", [80, 160])
def test_it_fits_a_terminal(width: int, host: str) -> None:
    """The command at a terminal of its own."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    done = subprocess.Popen(["nsenter", f"--net={host}", *program(), "doctor"], stdin=child, stdout=child, stderr=child,
                            env=os.environ | NO_ENGINE | {"TERM": "xterm"})
    os.close(child)
    text = b""
    try:
        while data := os.read(parent, 4096):
            text += data
    except OSError:  # its end
        pass
    os.close(parent)
    assert done.wait(30) == 1
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 24, "\n".join(lines)


def test_kill_9_takes_the_trial_along() -> None:
    """It is stopped, so that it does not end by itself."""
    deadline = time.monotonic() + 20
    with subprocess.Popen([*program(), "doctor"], stdout=subprocess.DEVNULL) as run:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        trial = None
        while trial is None and time.monotonic() < deadline:  # its other children are of other programs
            trial = next((int(pid) for pid in children.read_text().split() if b"doctor" in cmdline(pid)), None)
        assert trial
        time.sleep(0.2)  # it was just forked
        os.kill(trial, signal.SIGSTOP)
        run.kill()
    while cmdline(trial) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not cmdline(trial)


def cmdline(pid: int | str) -> bytes:
    """Empty where it is no more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
