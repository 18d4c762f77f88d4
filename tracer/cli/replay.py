"""`dnettrace replay`: what a recorded run showed, shown again. Needs no root, no kernel and no Docker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import click

from tracer.errors import ExitStatus, UserError
from tracer.model.journey import Journey, Result

LOOK_S = 0.1  # between two looks for more of a file


@click.command()
@click.argument("file")
@click.option("-v", "--verbose", is_flag=True, help="Show neighbour lookups, copies and hooks without tables too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--journey", type=click.IntRange(min=1), metavar="N", help="Only journey N: `id` in JSON, frame.packet_id.")
@click.option("--container", metavar="NAME", help="Only journeys that were seen at this container.")
@click.option("--drops", is_flag=True, help="Only journeys that ended in a drop.")
@click.option("--follow", is_flag=True, help="Go on while the file is being written.")
def replay(file: str, verbose: bool, as_json: bool, journey: int | None, container: str | None, drops: bool,
           follow: bool) -> int:
    """Show the run that FILE recorded as the live command showed it.

    \b
      sudo dnettrace ping c1 c2 -c 1 -w ping.pcapng
      dnettrace replay ping.pcapng -v
    """
    from tracer.capture.reader import Reader
    from tracer.cli.output import renderer_for
    from tracer.cli.telling import Telling
    from tracer.model.run import Finish, Tell

    renderer = renderer_for(as_json)
    if journey or container or drops:
        from tracer.render.chosen import ChosenRenderer

        def chosen(one: Journey) -> bool:
            return (journey in (None, one.id) and (not drops or one.end.result is Result.DROPPED)
                    and (container is None or any(hop.node == container for hop in one.hops)))

        renderer = ChosenRenderer(renderer, chosen)
    telling = Telling(renderer, verbose)
    begun = interrupted = False
    with opened(file) as stream:
        reader = Reader(stream, file, _more if follow else lambda: False)
        try:
            for item in reader:
                begun = True
                telling.play(item)
        except KeyboardInterrupt:
            interrupted = True
    if begun and (interrupted or reader.cut):
        for seq in sorted(telling.waiting):
            telling.play(Tell(seq, interrupted=True))
        if reader.cut:
            renderer.warning(f"{file} is not whole, and shown as far as it goes: {reader.cut}")
        telling.play(Finish())
    return ExitStatus.INTERRUPTED if interrupted else telling.status


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    try:
        stream = open(file, "rb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    with stream:
        yield stream


def _more() -> bool:
    time.sleep(LOOK_S)
    return True
