"""Traces of real runs that come with the package, to show what dnettrace shows without root, Docker or Linux."""

from __future__ import annotations

from pathlib import Path

from tracer.errors import UserError

SAMPLE = "sample:"
FOLDER = Path(__file__).resolve().parent.parent / "capture" / "samples"
# What `scripts/samples` records. -> what it shows
SAMPLES = {
    "ping": "c1 to c2 on docker0: the bridge is a switch",
    "masquerade": "c1 to an address outside: docker0 is the gateway, and the source is rewritten",
    "published": "a TCP SYN from outside to a published port: its destination is rewritten",
    "isolated": "dropped: between two networks that Docker isolates",
    "firewall": "dropped: by a rule of somebody in DOCKER-USER",
    "nobody": "dropped: to an address that nobody has",
}


def path_of(file: str) -> str:
    """Of a sample:NAME; any other is a path already."""
    if not file.startswith(SAMPLE):
        return file
    name = file.removeprefix(SAMPLE)
    if name not in SAMPLES:
        raise UserError(f"There is no sample {name!r}: `dnettrace replay {SAMPLE}` lists them.")
    return str(FOLDER / f"{name}.pcapng")


def listing() -> str:
    return "\n".join(f"{SAMPLE}{name:12} {about}" for name, about in SAMPLES.items())
