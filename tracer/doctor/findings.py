"""Each finding in one line."""

from __future__ import annotations

from collections.abc import Iterator

from tracer.kernel.catalogue import BRIDGE as DECISION, CATALOGUE, TABLES, WHOLE_HOOKS, shown_by
from tracer.model.health import Check, EngineState, Health, Part, State
from tracer.topology.settings import RP_FILTER

TRACEPOINT = " tracepoint"
MODES = {"1": "strict", "2": "loose"}
MODE_ORDER = ("strict", "loose", "off")
NAMED = 4  # devices; of more, how many
BRIDGE = "net.bridge.bridge-nf-call-{}"


def checks(health: Health) -> Iterator[Check]:
    yield Check("BTF", State.BAD if health.btf else State.GOOD, (health.btf or "this kernel's own").partition(": ")[0])
    yield from _software(health.parts)
    yield _rights(health)
    yield _lockdown(health.rights.lockdown)
    yield from _mechanisms(health)
    yield from _engines(health)
    yield from _settings(health)
    yield _tables(health)


def _software(parts: tuple[Part, ...]) -> Iterator[Check]:
    missing = [part.name for part in parts if part.version is None]
    there = ", ".join(f"{part.name} {part.version}".rstrip() for part in parts if part.version is not None)
    absent = f"missing: {', '.join(missing)}" if missing else ""
    fatal = any(part.version is None and part.lost is None for part in parts)
    state = State.BAD if fatal else State.LESS if missing else State.GOOD
    yield Check("software", state, "; ".join(filter(None, (absent, there))))


def _rights(health: Health) -> Check:
    rights = health.rights
    if not rights.root:
        return Check("rights", State.BAD, "not root")
    if rights.lacking:
        return Check("rights", State.BAD, f"root without {', '.join(rights.lacking)}")
    return Check("rights", State.GOOD, "root")


def _lockdown(mode: str | None) -> Check:
    if mode is None:
        return Check("lockdown", State.GOOD, "this kernel tells of none")
    forbids = {"confidentiality": ": forbids to read kernel memory"}.get(mode, "")
    return Check("lockdown", State.BAD if forbids else State.GOOD, mode + forbids)


def _mechanisms(health: Health) -> Iterator[Check]:
    if health.trial is None:
        yield Check("mechanisms", State.UNKNOWN, f"not tried: {health.untried.partition(': ')[0]}")
        return
    good = [tried.name for tried in health.trial.mechanisms if tried.works]
    if good:  # "cast, typed, raw tracepoint, netfilter link"
        shorter = [name.removesuffix(TRACEPOINT) if then.endswith(TRACEPOINT) else name
                   for name, then in zip(good, [*good[1:], ""], strict=True)]
        yield Check("mechanisms", State.GOOD, ", ".join(shorter))
    lost = {shown_by(missing.name) for missing in health.trial.missing}
    spare = []
    for tried in health.trial.mechanisms:
        if tried.works is None:
            yield Check(tried.name, State.UNKNOWN, tried.why)
        elif not tried.works:
            shows = {probe.shows for probe in CATALOGUE for way in probe.ways if way.words == tried.name}
            if health.trial.problem or lost & shows:
                yield Check(tried.name, State.LESS, tried.why)
            else:
                spare.append(f"{tried.name} ({tried.why.removeprefix(f'{tried.name}: ')})")
    if spare:  # another shows the same: no loss
        yield Check("not needed", None, ", ".join(spare))
    if not health.trial.problem:
        observed = DECISION in map(shown_by, health.trial.attached)
        yield Check("bridges", State.GOOD if observed else None, "their decisions are " + (
            "seen themselves, in the kernel's functions" if observed else "told from kernel stacks, untimed"))
        if WHOLE_HOOKS[0] in health.trial.attached:
            apart = any(table in health.trial.attached for table in TABLES)
            yield Check("netfilter", None, "each hook is seen as a whole, its tables are not told apart" + (
                ", but those of iptables-legacy" if apart else ""))
    if health.trial.untraced:
        yield Check("rule tracing", State.LESS, health.trial.untraced)


def _engines(health: Health) -> Iterator[Check]:
    if health.engine_problem:
        yield Check("engine", State.BAD, health.engine_problem.partition(": ")[0])
    for engine in health.engines:
        yield _engine(engine)
    if health.wants_engine and not health.engines and not health.engine_problem:
        yield Check("engine", State.LESS, "no socket of Docker or Podman")
    if not health.wants_engine:
        yield Check("engine", None, "none: the lab has namespaces only")


def _engine(engine: EngineState) -> Check:
    unused = "" if engine.chosen else "; not asked, unless DOCKER_HOST says so"
    if engine.name is None:
        return Check("engine", State.LESS if engine.chosen else None, f"{engine.place}: {engine.why}{unused}")
    return Check("engine", State.GOOD if engine.chosen else None,
                 f"{engine.name} at {engine.place}, {engine.containers} running{unused}")


def _settings(health: Health) -> Iterator[Check]:
    settings = health.settings
    forward, forward6 = settings.get("net.ipv4.ip_forward"), settings.get("net.ipv6.conf.all.forwarding", "none")
    yield Check("ip_forward", State.LESS if forward == "0" else None, f"{forward}, IPv6 {forward6}" + (
        ": containers reach only their own bridge (`sysctl -w net.ipv4.ip_forward=1`)" if forward == "0" else ""))
    calls = {name: settings[key] for name in ("iptables", "ip6tables", "arptables")
             if (key := BRIDGE.format(name)) in settings}
    if not calls:
        yield Check("br_netfilter", None, "not loaded: iptables does not see what a bridge switches")
    else:
        blind = calls.get("iptables") == "0"
        told = "bridge-nf-call-" + ", ".join(f"{name} {value}" for name, value in calls.items())
        yield Check("br_netfilter", None, told + (": iptables does not see what a bridge switches" if blind else ""))
    yield Check("rp_filter", None, _rp_filter(health))


def _rp_filter(health: Health) -> str:
    """By mode, the devices that it holds for: the larger one of a device's and of `all`'s."""
    before, behind = RP_FILTER.split("{}")
    values = {name.removeprefix(before).removesuffix(behind): value for name, value in health.settings.items()
              if name.startswith(before) and name.endswith(behind)}
    everywhere = values.pop("all", "0")
    values.pop("default", None)
    by_mode: dict[str, list[str]] = {}
    for device, value in values.items():
        by_mode.setdefault(MODES.get(max(value, everywhere), "off"), []).append(device)
    if len(by_mode) < 2:
        return next(iter(by_mode), MODES.get(everywhere, "off"))
    return "; ".join(f"{mode} on {', '.join(devices) if len(devices) <= NAMED else f'{len(devices)} devices'}"
                     for mode, devices in sorted(by_mode.items(), key=lambda item: MODE_ORDER.index(item[0])))


def _tables(health: Health) -> Check:
    tables = health.tables
    said = [f"{name} {number}" for name, number in tables.rules.items()]
    unread = ", ".join(tables.unread) if health.rights.root else "only root may read the rules"
    both = all(tables.rules.get(name) for name in ("iptables-nft", "iptables-legacy"))
    text = "; ".join(filter(None, (
        (tables.iptables or "not installed").removeprefix("iptables "), f"rules: {', '.join(said)}" if said else "",
        "both backends have rules, and a packet meets both" if both else "",
        f"not read: {unread}" if tables.unread else "")))
    return Check("iptables", State.LESS if both else State.UNKNOWN if tables.unread else None, text)
