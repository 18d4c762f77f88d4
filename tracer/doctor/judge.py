"""What each command can and cannot show, from what was found. It takes no look at the machine."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tracer.doctor.findings import checks
from tracer.kernel.catalogue import shown_by
from tracer.model.health import Ability, Diagnosis, EngineState, Health, Lack, Rights
from tracer.model.probes import Missing

TRACING = ("ping", "live", "record")
SETUP = "run `sudo ./scripts/setup`, or install {} (Debian's name)"
UNLOCK = "boot without lockdown=confidentiality, with Secure Boot off where that sets it"
REPORT = "please report it, with the output of `dnettrace doctor --json`"
LOGGED = "to the log of"  # tracer/kernel/rules.py
QUIET = "`sysctl -w net.netfilter.nf_log.2=NONE net.netfilter.nf_log.10=NONE` while you trace"
SENDING = "CAP_NET_RAW"  # for `ping` alone
NOT_LOADED = re.compile(r"(\w+) is not loaded")  # tracer/kernel/functions.py
NEWER = "boot Linux 6.4 or newer, where every mechanism is allowed"


def diagnose(version: str, health: Health) -> Diagnosis:
    return Diagnosis(version, health, tuple(checks(health)), (
        *(Ability(command, tuple(_lacks(command, health))) for command in TRACING), Ability("replay")))


def _lacks(command: str, health: Health) -> Iterator[Lack]:
    yield from _software(command, health)
    yield from _rights(command, health.rights)
    yield from _kernel(command, health)
    if health.wants_engine:
        yield from _engine(health)
    if command != "record" and health.trial:
        yield from _rules(health)


def _software(command: str, health: Health) -> Iterator[Lack]:
    if health.btf:
        why, _, mend = health.btf.partition(": ")
        yield Lack("BTF" if "BTF" in why else "libbpf", why, mend.rstrip("."), fatal=True)
    for part in health.parts:
        if part.version is None and command in part.commands:
            why, _, mend = (part.why or f"{part.name} is not installed: {SETUP.format(part.package)}").partition(": ")
            yield Lack(part.lost or part.name, why, mend.rstrip("."), not part.lost)


def _rights(command: str, rights: Rights) -> Iterator[Lack]:
    lacking = [name for name in rights.lacking if name != SENDING or command == "ping"]
    if not rights.root:
        yield Lack("root", "tracing needs it", "run it with sudo", fatal=True)
    elif lacking:
        yield Lack("rights", f"root here has no {', '.join(lacking)}",
                   "run it on the host itself, or in a container with --privileged --pid host --network host", fatal=True)
    if rights.lockdown == "confidentiality":
        yield Lack("BPF", "lockdown forbids to read kernel memory", UNLOCK, fatal=True)


def _kernel(command: str, health: Health) -> Iterator[Lack]:
    trial = health.trial
    if trial is None:
        rights = health.rights
        absent = [part for part in health.parts if part.version is None and not part.lost]
        if rights.root and not (rights.lacking or health.btf or absent):  # else that is said already
            why, _, mend = health.untried.partition(": ")
            yield Lack("tracing", why, mend.rstrip(".") or REPORT, fatal=True)
        return
    if trial.problem:
        yield Lack("tracepoints", trial.problem, "boot Linux 5.10 or newer, with lockdown off", fatal=True)
        return
    if trial.problem_of_streams and command != "ping":
        yield Lack("filters", trial.problem_of_streams, NEWER, fatal=True)
        return
    yield from map(_shown, trial.missing)


def _shown(probe: Missing) -> Lack:
    """By what the catalogue says that it shows."""
    what = shown_by(probe.name) or probe.name
    absent = NOT_LOADED.search(probe.why)
    return Lack(what, probe.why.removeprefix(f"{what}: "), f"`modprobe {absent[1]}`, or {NEWER}" if absent else NEWER)


def _engine(health: Health) -> Iterator[Lack]:
    if health.engine_problem:
        why, _, mend = health.engine_problem.partition(": ")
        yield Lack("a DOCKER_HOST that is one", why, mend.rstrip("."), fatal=True)
        return
    engine = _chosen(health)
    if engine is None:
        yield Lack("container names", "no engine's socket is here", "start Docker or Podman, or set DOCKER_HOST; "
                   "netns:NAME and --lab work without")
    elif engine.name is None:
        mend = "start it (`systemctl start docker`), or set DOCKER_HOST to one" if health.rights.root else "run it with sudo"
        yield Lack("container names", f"the engine at {engine.place} does not answer ({engine.why})", mend)
    elif engine.unreachable:
        yield Lack("containers", f"{engine.unreachable}'s process is not on this machine, or not to be seen from here",
                   "run it where the engine runs; in a container, with --pid host")


def _rules(health: Health) -> Iterator[Lack]:
    if health.trial and health.trial.untraced:
        why = health.trial.untraced
        yield Lack("nftables' rules", why, QUIET if LOGGED in why else "boot Linux 5.12 or newer, with CONFIG_NF_TABLES")
    for why in health.tables.unread if health.rights.root else ():
        yield Lack("iptables' rules", f"not read: {why}", SETUP.format("iptables"))


def _chosen(health: Health) -> EngineState | None:
    return next((engine for engine in health.engines if engine.chosen), None)
