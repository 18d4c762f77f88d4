"""`dnettrace export`: a trace file in other words. Needs no root, no kernel and no Docker."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import click

from tracer.cli.options import journey_option
from tracer.cli.output import target_file
from tracer.errors import ExitStatus, UserError

FORMATS = ("jsonl", "csv", "mermaid", "plain-pcap")


@click.command()
@click.argument("file")
@click.option("--to", "kind", type=click.Choice(FORMATS), required=True,
              help="JSON lines as `replay --json` has them, a CSV row a hop, a sequence diagram of one journey, or a pcap "
              "file in which each packet is once.")
@click.option("-o", "--output", metavar="FILE", help="Default: standard output.")
@click.option("--force", is_flag=True, help="Replace it if it is there.")
@journey_option
@click.option("--filter", "expression", default="", metavar="EXPR", help="Only packets that matched this at first sight.")
@click.option("--at", metavar="PLACE", help="plain-pcap: the place, as Wireshark names the interface: 'c1/eth0 egress'. "
              "Default: where each packet was first seen.")
@click.pass_context
def export(context: click.Context, file: str, kind: str, output: str | None, force: bool, journey: int | None,
           expression: str, at: str | None) -> int:
    """Write FILE in another format.

    \b
      dnettrace export run.pcapng --to mermaid --journey 3
      dnettrace export run.pcapng --to plain-pcap --at 'c1/eth0 egress' -o c1.pcap
    """
    if at is not None and kind != "plain-pcap":
        raise click.UsageError("--at is for plain-pcap.", context)
    if kind == "plain-pcap" and (journey or expression):
        raise click.UsageError("plain-pcap takes --at only: filter what it writes with tcpdump.", context)
    if kind == "plain-pcap" and output is None and sys.stdout.isatty():
        raise click.UsageError("plain-pcap is no text: give -o FILE.", context)
    from tracer.capture.reader import Reader
    from tracer.cli.replay import Choice, opened, shown

    with opened(file) as stream, target_file(output, force) as target:
        if kind == "plain-pcap":
            from tracer.capture import plain_pcap
            plain_pcap.write(stream, file, target.buffer, at)
            return ExitStatus.OK
        reader = Reader(stream, file)
        choice = Choice(journey, expression=expression)
        if kind == "mermaid":
            from tracer.render.collected import Collected, LiveCollected
            from tracer.render.mermaid import diagram
            collected = Collected(), LiveCollected()
            shown(reader, lambda: reader.cut, file, replace(choice, count=1), True, lambda live: collected[live])
            found = [*collected[0].journeys, *collected[1].journeys]
            if not found:
                raise UserError(f"{file} has no such journey.")
            target.write(diagram(found[0]))
            return ExitStatus.OK
        if kind == "csv":
            from tracer.render.csv_rows import CsvRenderer, LiveCsvRenderer
            renderers: tuple[type[Any], type[Any]] = CsvRenderer, LiveCsvRenderer
        else:
            from tracer.render.json_lines import JsonRenderer, LiveJsonRenderer
            renderers = JsonRenderer, LiveJsonRenderer
        shown(reader, lambda: reader.cut, file, choice, kind == "csv", lambda live: renderers[live](target))
    return ExitStatus.OK
