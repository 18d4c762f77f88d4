"""`dnettrace info`: what a trace file is."""

from __future__ import annotations

import sys
from datetime import datetime, timezone

import click


@click.command()
@click.argument("file")
def info(file: str) -> None:
    """Say what FILE is: when and where it was recorded, what is in it, what is missing."""
    from tracer.capture.reader import Reader
    from tracer.cli.replay import opened
    from tracer.model.probes import Batch, Machine
    from tracer.model.run import Begin, Know, LiveBegin, Sent
    from tracer.render.alphabet import Alphabet

    sent = lost = 0
    share = 1.0
    with opened(file) as stream:
        reader = Reader(stream, file, events=False)
        for item in reader:
            if isinstance(item, Begin | LiveBegin):
                begin, machine, topology = item, item.machine, item.topology
            elif isinstance(item, Machine):
                machine = item
            elif isinstance(item, Know):
                topology = item.topology
            elif isinstance(item, Batch):
                lost += item.lost
                share = min(share, item.share)
            elif isinstance(item, Sent):
                sent += 1
        size = stream.tell()
    start, counts = begin.start, reader.counts
    missing = "; ".join(f"{probe.name} ({probe.why})" for probe in machine.missing)
    rows = [
        ("what", f"dnettrace trace, format {reader.version}, by dnettrace {start.version}, {size:,} bytes"),
        ("when", f"{_when(begin.wall_ns)}, {max(counts.last - counts.first, 0) / 1e9:.3f} s"),
        ("where", f"Linux {start.kernel}"),
        ("run", f"live, {begin.start.following or 'every packet'}" if isinstance(begin, LiveBegin) else
            f"{begin.selection.transport} from {begin.start.source.name} ({begin.start.source.address}) to "
            f"{begin.start.destination.name} ({begin.start.destination.address}), {sent} sent"),
        ("holds", f"{counts.packets:,} frames at {max(counts.interfaces - 1, 0)} places"),
        ("lost", (f"{lost:,} events" if lost else "no event")
         + (f"; under load down to {share:.2%} of the packets were followed, whole" if share < 1 else "")),
        ("not observed", missing or "–"),
        ("containers", ", ".join(container.name for container in topology.containers) or "–"),
        ("networks", ", ".join(network.name for network in topology.networks) or "–"),
        ("whole", f"no: {reader.cut}" if reader.cut else "yes"),
    ]
    alphabet = Alphabet(sys.stdout.encoding)
    for name, value in rows:
        click.echo(f"{name:12}  {alphabet.show(value)}")


def _when(wall_ns: int) -> str:
    try:
        return datetime.fromtimestamp(wall_ns // 10**9, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # of a year that nobody has
        return "?"
