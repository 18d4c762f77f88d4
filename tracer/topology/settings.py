"""The sysctls that decide a packet's way, read from their files: no root is needed for the namespace that one is in."""

from __future__ import annotations

from pathlib import Path

from tracer.topology.netns import inside

NAMES = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding",
         *(f"net.bridge.bridge-nf-call-{name}" for name in ("iptables", "ip6tables", "arptables")))
RP_FILTER = "net.ipv4.conf.{}.rp_filter"  # the larger one of a device's and of `all`'s counts
_ROOT = Path("/proc/sys/net")


def read_settings(path: str) -> dict[str, str]:
    """Of the namespace at `path`, by the names that `sysctl` gives them. What this kernel does not have is left out."""
    return inside(path, _read)


def _read() -> dict[str, str]:
    found = {name: _ROOT.parent / name.replace(".", "/") for name in NAMES}
    try:
        devices = sorted(folder.name for folder in (_ROOT / "ipv4/conf").iterdir())
    except OSError:
        devices = []
    for name in devices:
        found[RP_FILTER.format(name.replace(".", "/"))] = _ROOT / "ipv4/conf" / name / "rp_filter"  # eth0/100
    return {name: text for name, file in found.items() if (text := _text(file)) is not None}


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return None
