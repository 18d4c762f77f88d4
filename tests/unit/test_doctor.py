"""`dnettrace doctor`: what is found, what follows from it for each command, and how it is shown."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.unit.test_topology_engine import Server
from tracer.cli.main import main
from tracer.doctor import examine as examining, rights, software
from tracer.doctor.apart import apart
from tracer.doctor.judge import diagnose
from tracer.errors import ExitStatus, UserError
from tracer.kernel.catalogue import CATALOGUE, TRACEPOINT_WAYS, Mechanism
from tracer.kernel.probes import Refused
from tracer.model.health import Diagnosis, EngineState, Health, Part, Rights, State, Tables, Trial, Tried
from tracer.model.probes import Missing
from tracer.render.diagnosis import print_text
from tracer.render.diagnosis_json import print_json
from tracer.topology import backends, engine as engines, settings

WHOLE = Health(
    "this host", "6.18.0", "x86_64", None,
    tuple(Part(name, "1.0", name, software.TRACING) for name in ("bcc", "numpy")), Rights(True, (), "none"),
    Trial(tuple(Tried(mechanism.words, True) for mechanism in Mechanism), tuple(probe.name for probe in CATALOGUE)), "",
    (EngineState("/var/run/docker.sock", "Docker 28.5.2", containers=3),), None, True,
    {"net.ipv4.ip_forward": "1", "net.bridge.bridge-nf-call-iptables": "1", "net.ipv4.conf.all.rp_filter": "0",
     "net.ipv4.conf.docker0.rp_filter": "2", "net.ipv4.conf.lo.rp_filter": "0"},
    Tables("iptables v1.8.9 (nf_tables)", {"iptables-nft": 12, "nftables": 0, "iptables-legacy": 0}))
assert WHOLE.trial is not None


def lacks(health: Health, command: str = "ping") -> list[tuple[str, bool]]:
    return [(lack.what, lack.fatal) for ability in diagnose("1", health).abilities if ability.command == command
            for lack in ability.lacks]


def screen(diagnosis: Diagnosis, width: int = 80) -> list[str]:
    stream = io.StringIO()
    print_text(diagnosis, Console(file=stream, width=width, force_terminal=True, color_system=None))
    return stream.getvalue().splitlines()


def row(diagnosis: Diagnosis, name: str) -> tuple[State | None, str]:
    return next((check.state, check.text) for check in diagnosis.checks if check.name == name)


def test_where_all_is_there_nothing_is_lacking() -> None:
    diagnosis = diagnose("1", WHOLE)
    assert diagnosis.whole
    assert all(ability.state is State.GOOD for ability in diagnosis.abilities)
    assert not any(check.state in (State.BAD, State.LESS, State.UNKNOWN) for check in diagnosis.checks)


@pytest.mark.parametrize("width", [80, 160])
def test_it_fits_a_screen(width: int) -> None:
    lines = screen(diagnose("0.1.0", WHOLE), width)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= width
    assert lines[-4].startswith("✓ ping")


@pytest.mark.parametrize(("change", "expected"), [
    ({"rights": Rights(False, (), None), "trial": None, "untried": "only root may try it"}, [("root", True)]),
    ({"rights": Rights(True, ("CAP_NET_RAW",), None)}, [("rights", True)]),
    ({"rights": Rights(True, (), "confidentiality")}, [("BPF", True)]),
    ({"btf": "This kernel has no BTF (/sys/kernel/btf/vmlinux): boot another.", "trial": None}, [("BTF", True)]),
    ({"trial": None, "untried": "dnettrace runs on x86_64, not on s390x."}, [("tracing", True)]),
    ({"engines": ()}, [("container names", False)]),
    ({"engines": (), "wants_engine": False}, []),
    ({"engines": (EngineState("/var/run/docker.sock", None, "connection refused"),)}, [("container names", False)]),
    ({"engines": (EngineState("10.0.0.1:2375", "Docker 28.5.2", containers=1, unreachable="c1"),)}, [("containers", False)]),
    ({"engine_problem": 'DOCKER_HOST is "x", which names no engine: set it.'}, [("a DOCKER_HOST that is one", True)]),
    ({"trial": replace(WHOLE.trial, problem="EPERM")}, [("tracepoints", True)]),
    ({"trial": replace(WHOLE.trial, missing=(Missing("netfilter", "netfilter links: this kernel has none"),))},
     [("netfilter's hooks and tables", False)]),
    ({"trial": replace(WHOLE.trial, missing=(Missing("fib6_table_lookup", "route lookups: ENOENT"),))},
     [("route lookups", False)]),
    ({"trial": replace(WHOLE.trial, untraced="this nf_tables has no tables with an owner")}, [("nftables' rules", False)]),
    ({"trial": replace(WHOLE.trial, untraced="iptables-legacy would write each traced packet to the log of nf_log_ipv4")},
     [("nftables' rules", False)]),
    ({"tables": replace(WHOLE.tables, unread=("nftables (why)",))}, [("iptables' rules", False)]),
    ({"parts": (Part("bcc", None, "python3-bpfcc", software.TRACING, why="PyPI's is found: uninstall it."),), "trial": None},
     [("bcc", True)]),
    ({"parts": (Part("nft", None, "nftables", ("ping",), "the words of rules"),)}, [("the words of rules", False)]),
])
def test_what_is_missing_is_said_with_its_mend(change: dict[str, Any], expected: list[tuple[str, bool]]) -> None:
    health = replace(WHOLE, **change)
    assert lacks(health) == expected
    diagnosis = diagnose("1", health)
    assert diagnosis.whole is (expected == [])
    assert all(lack.mend and lack.why for ability in diagnosis.abilities for lack in ability.lacks)
    assert lacks(health, "replay") == []
    shown = "\n".join(screen(diagnosis))
    assert all(what in shown for what, _ in expected)
    assert ("cannot run without" in shown) is any(fatal for _, fatal in expected)


@pytest.mark.parametrize(("attached", "words"), [
    (("__br_forward",), "seen themselves, in the kernel's functions"), ((), "told from kernel stacks, untimed")])
def test_how_a_bridge_s_decision_is_known(attached: tuple[str, ...], words: str) -> None:
    (found,) = [check for check in diagnose("1", replace(WHOLE, trial=replace(WHOLE.trial, attached=attached))).checks
                if check.name == "bridges"]
    assert found.text == f"their decisions are {words}"


def test_a_module_that_is_not_loaded_can_be() -> None:
    why = "netfilter links: this kernel has none; function probes: nf_tables is not loaded"
    health = replace(WHOLE, trial=replace(WHOLE.trial, missing=(Missing("netfilter", why),)))
    (lack,) = diagnose("1", health).abilities[0].lacks
    assert lack.mend == "`modprobe nf_tables`, or boot Linux 6.4 or newer, where every mechanism is allowed"


def test_each_command_is_told_what_concerns_it() -> None:
    assert WHOLE.trial is not None
    trial = replace(WHOLE.trial, missing=(Missing("fib_table_lookup", "route lookups: ENOENT"),), untraced="why",
                    problem_of_streams="EACCES")
    health = replace(WHOLE, trial=trial, rights=Rights(True, ("CAP_NET_RAW",), None),
                     parts=(Part("libpcap", None, "libpcap0.8", ("live", "record")),))
    assert [what for what, _ in lacks(health)] == ["rights", "route lookups", "nftables' rules"]
    assert [what for what, _ in lacks(health, "live")] == ["libpcap", "filters", "nftables' rules"]
    assert [what for what, _ in lacks(health, "record")] == ["libpcap", "filters"]


def test_a_lack_that_several_share_is_told_once() -> None:
    lines = screen(diagnose("1", replace(WHOLE, engines=())))
    assert sum("mend:" in line for line in lines) == 1
    assert "! container names (ping, live, record): no engine's socket is here" in lines
    assert [line.split(None, 2)[2] for line in lines if line.startswith(("! ping", "! live", "! record"))] == [
        "runs, without container names", "the same", "the same"]


def test_what_has_one_mend_is_mended_once() -> None:
    missing = tuple(Missing(probe.name, f"{probe.shows}: EPERM") for probe in CATALOGUE[2:4])
    assert WHOLE.trial is not None
    lines = screen(diagnose("1", replace(WHOLE, trial=replace(WHOLE.trial, missing=missing))))
    assert [line.strip()[:5] for line in lines[-3:]] == ["! dro", "! the", "mend:"]


def test_what_decides_the_path() -> None:
    diagnosis = diagnose("1", WHOLE)
    assert row(diagnosis, "rp_filter") == (None, "loose on docker0; off on lo")
    strict = {**WHOLE.settings, "net.ipv4.conf.all.rp_filter": "1"}
    assert row(diagnose("1", replace(WHOLE, settings=strict)), "rp_filter") == (None, "strict on lo; loose on docker0")
    bare = diagnose("1", replace(WHOLE, settings={"net.ipv4.ip_forward": "0"}))
    assert row(bare, "br_netfilter") == (None, "not loaded: iptables does not see what a bridge switches")
    state, text = row(bare, "ip_forward")
    assert state is State.LESS
    assert "net.ipv4.ip_forward=1" in text
    both = replace(WHOLE.tables, rules={"iptables-nft": 1, "iptables-legacy": 2})
    assert "a packet meets both" in row(diagnose("1", replace(WHOLE, tables=both)), "iptables")[1]


def test_why_a_mechanism_fails_is_said() -> None:
    assert WHOLE.trial is not None
    mechanisms = (Tried("cast tracepoint", False, "no bpf_rdonly_cast"), *WHOLE.trial.mechanisms[1:])
    diagnosis = diagnose("1", replace(WHOLE, trial=replace(WHOLE.trial, mechanisms=mechanisms)))
    assert row(diagnosis, "not needed") == (None, "cast tracepoint (no bpf_rdonly_cast)")
    assert diagnosis.whole  # another way does the same
    alone = tuple(replace(tried, works=False, why="EPERM") for tried in WHOLE.trial.mechanisms)
    refused = diagnose("1", replace(WHOLE, trial=Trial(alone, problem="EPERM")))
    assert row(refused, "raw tracepoint") == row(refused, "netfilter link") == (State.LESS, "EPERM")


def test_json_is_one_object() -> None:
    stream = io.StringIO()
    print_json(diagnose("0.1.0", replace(WHOLE, engines=())), stream)
    [line] = stream.getvalue().splitlines()
    told = json.loads(line)
    assert (told["type"], told["schema"], told["whole"]) == ("doctor", 1, False)
    assert {command["name"]: command["state"] for command in told["commands"]} == {
        "ping": "less", "live": "less", "record": "less", "replay": "good"}
    assert told["commands"][0]["lacks"][0]["mend"]
    assert {"name": "engine", "state": "less", "text": "no socket of Docker or Podman"} in told["checks"]
    assert told["rules"] == {"iptables-nft": 12, "nftables": 0, "iptables-legacy": 0}


def test_text_from_an_engine_cannot_reach_the_terminal() -> None:
    engine = EngineState("/var/run/docker.sock", "Docker \x1b[31m1")
    assert "\x1b" not in "".join(screen(diagnose("1", replace(WHOLE, engines=(engine,)))))


# -- looking -----------------------------------------------------------------------------------------------------------


def test_a_capability_that_is_not_there() -> None:
    assert rights._lacking("CapEff:\t000001ffffffffff\n") == ()
    assert rights._lacking("CapEff:\t0000000000201000\n") == ("CAP_NET_RAW",)  # BPF and PERFMON are part of SYS_ADMIN
    assert rights._lacking("CapEff:\t000000c000003000\n") == ("CAP_SYS_ADMIN",)


def test_lockdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights, "LOCKDOWN", tmp_path / "lockdown")
    assert rights._lockdown() is None
    (tmp_path / "lockdown").write_text("none [integrity] confidentiality\n")
    assert rights._lockdown() == "integrity"


def test_software_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", types.ModuleType("bcc"))
    monkeypatch.setattr(software, "find_spec", lambda name: None)
    parts = {part.name: part for part in software.read_parts()}
    assert "another project" in parts["bcc"].why
    assert parts["numpy"].version is parts["scapy"].version is None


def test_settings_are_read_where_one_is_without_root() -> None:
    found = settings.read_settings("/proc/self/ns/net")
    assert found["net.ipv4.ip_forward"] == Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()
    assert "net.ipv4.conf.lo.rp_filter" in found


@pytest.mark.parametrize(("file", "said"), [
    ("xtables-nft-multi", "iptables (nf_tables)"), ("xtables-legacy-multi", "iptables (legacy)"), ("busybox", "busybox")])
def test_the_backend_where_asking_would_load_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str,
                                                      said: str) -> None:
    (tmp_path / file).write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / file).chmod(0o755)
    (tmp_path / "iptables").symlink_to(file)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(backends, "is_loaded", lambda module: False)
    assert backends._iptables() == said
    assert backends._nftables() == {"iptables-nft": 0, "nftables": 0}


def test_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker, podman = str(tmp_path / "docker.sock"), str(tmp_path / "podman.sock")
    Server(docker, {"/containers/json?all=1": [], "/version": {"Version": "28.5.2", "Components": [{"Name": "Engine"}]}})
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(podman)  # and does not listen
    monkeypatch.setattr(engines, "SOCKETS", (docker, podman))
    monkeypatch.setattr(examining, "SOCKETS", (docker, podman))
    found, problem = examining._engines({})
    assert problem is None
    assert [(engine.name, engine.chosen, engine.why) for engine in found] == [
        ("Docker 28.5.2", True, ""), (None, False, "connection refused")]
    found, problem = examining._engines({"DOCKER_HOST": "nonsense"})
    assert problem and problem.startswith('DOCKER_HOST is "nonsense"')
    assert [engine.chosen for engine in found] == [False, False]


@pytest.mark.parametrize(("pid", "unreachable"), [(os.getpid(), ""), (2**22 + 1, "c1")])
def test_an_engine_whose_containers_are_elsewhere(tmp_path: Path, pid: int, unreachable: str) -> None:
    path = str(tmp_path / "s")
    Server(path, {"/containers/json?all=1": [{"Id": "ab12", "Names": ["/c1"], "State": "running"}],
                  "/containers/ab12/json": {"Id": "ab12", "Name": "/c1", "State": {"Pid": pid, "Status": "running"}},
                  "/version": {"Version": "28.5.2"}})
    [state], problem = examining._engines({"DOCKER_HOST": f"unix://{path}"})
    assert problem is None
    assert (state.containers, state.unreachable) == (1, unreachable)


def test_podman_s_version(tmp_path: Path) -> None:
    server = Server(str(tmp_path / "s"), {"/version": {"Version": "4.3.1", "Components": [{"Name": "Podman Engine"}]}})
    assert engines.Engine(f"unix://{server.path}").version() == "Podman 4.3.1"
    server.answers["/version"] = ["what"]
    with pytest.raises(engines.EngineError, match="something else than its version"):
        engines.Engine(f"unix://{server.path}").version()


# -- trying ------------------------------------------------------------------------------------------------------------


class Loader:
    """What tracer.kernel.probes.Probes is to the trial; this kernel takes raw tracepoints, and no netfilter links."""

    def __init__(self, selection: object, mechanisms: tuple[Mechanism, ...] = tuple(Mechanism)) -> None:
        if Mechanism.RAW_TRACEPOINT not in mechanisms:
            raise Refused("EPERM")
        self.machine = types.SimpleNamespace(attached=("net_dev_queue",), missing=(), untraced=None)
        self.hooks = [way for way in mechanisms if way not in TRACEPOINT_WAYS]

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def watch(self, _namespace: object) -> None:
        if self.hooks:
            self.machine.missing = (Missing("netfilter", f"{self.hooks[0].words}: this kernel has none"),)

    def arm(self) -> None:
        pass


def test_the_trial_tries_each_mechanism_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from tracer.kernel import trial
    monkeypatch.setattr(trial, "Probes", Loader)
    found = trial.try_mechanisms(types.SimpleNamespace(inode=1))  # type: ignore[arg-type]
    assert [(tried.name, tried.works, tried.why) for tried in found.mechanisms] == [
        ("cast tracepoint", False, "EPERM"), ("typed tracepoint", False, "EPERM"), ("raw tracepoint", True, ""),
        *((words, False, f"{words}: this kernel has none") for words in ("netfilter link", "fentry", "kprobe"))]
    assert [lack.name for lack in found.missing] == ["netfilter"]
    assert (found.problem, found.problem_of_streams) == (None, None)


def test_a_kernel_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from tracer.kernel import trial

    def refuse(*_args: object, **_kw: object) -> None:
        raise Refused("EPERM: no")

    monkeypatch.setattr(trial, "Probes", refuse)
    found = trial.try_mechanisms(None)
    assert found.problem == "EPERM: no"
    assert [tried.works for tried in found.mechanisms] == [False] * len(TRACEPOINT_WAYS) + [None] * 3


def test_bcc_may_die() -> None:
    assert apart(lambda: WHOLE.trial) == WHOLE.trial
    with pytest.raises(UserError, match=r"died \(SIGKILL\): please report"):
        apart(lambda: os.kill(os.getpid(), signal.SIGKILL))

    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(UserError, match=r"no tracepoint program load \(EPERM\): boot"):
        apart(lambda: fail(Refused("EPERM")))
    with pytest.raises(OSError, match="no room"):
        apart(lambda: fail(OSError(28, "no room")))


def test_status_follows_ping(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(examining, "examine", lambda *_args, **_kw: WHOLE)
    assert main(["doctor"]) == ExitStatus.OK
    monkeypatch.setattr(examining, "examine", lambda *_args, **_kw: replace(WHOLE, engines=()))
    assert main(["doctor", "--json"]) == ExitStatus.LOST
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["whole"] is False


def test_without_the_lab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tracer.topology import lab
    monkeypatch.setattr(lab, "PREFIX", "dnt-no-such-lab-")
    assert main(["--lab", "doctor"]) == ExitStatus.ERROR
    assert "The lab is not up" in capsys.readouterr().err
