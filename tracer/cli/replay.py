"""`dnettrace replay`: what a recorded run showed, shown again. Needs no root, no kernel and no Docker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from tracer.cli.options import journey_option
from tracer.errors import ExitStatus, UserError
from tracer.model.journey import Journey, Result
from tracer.model.layout import Event
from tracer.model.probes import Batch
from tracer.model.run import Armed, Finish, Item, LiveBegin, Sent, Sweep, Tell

if TYPE_CHECKING:
    from tracer.cli.live_telling import LiveTelling
    from tracer.cli.telling import Telling

LOOK_S = 0.1  # between two looks for more of a file
WAIT_S = 3600.0  # at most, for what a file says is next: its times may be anything
SPEEDS = {"1": 1.0, "10": 10.0, "max": None}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which journeys are shown."""

    journey: int | None = None
    container: str | None = None
    expression: str = ""
    drops: bool = False
    tcp_problems: bool = False
    count: int | None = None

    def test(self) -> Callable[[Journey], bool] | None:
        """Of the journey alone. None: all. UserError where libpcap does not take the expression."""
        if self.journey is None and self.container is None and not self.expression:
            return None
        from tracer.model.classic import matches

        program = None
        if self.expression:
            from tracer.model.pcap import compile_expression
            program = compile_expression(self.expression)

        def chosen(one: Journey) -> bool:
            return (self.journey in (None, one.id)
                    and (self.container is None or any(hop.node == self.container for hop in one.hops))
                    and (program is None or matches(program, one.frame, max(one.packet.length + 14, len(one.frame)))))

        return chosen


@click.command()
@click.argument("file")
@click.option("-v", "--verbose", is_flag=True, help="As the live command's.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--filter", "expression", default="", metavar="EXPR", help="Only packets that matched this at first sight, an "
              "expression as tcpdump takes it.")
@journey_option
@click.option("--container", metavar="NAME", help="Only journeys that were seen at this container.")
@click.option("--drops", is_flag=True, help="Only journeys that ended in a drop.")
@click.option("--tcp-problems", is_flag=True, help="Only TCP retransmissions and resets.")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N journeys.")
@click.option("--speed", type=click.Choice(list(SPEEDS)), default="max", show_default=True,
              help="As fast as it happened, ten times as fast, or as fast as it goes.")
@click.option("--follow", is_flag=True, help="Go on while the file is being written.")
def replay(file: str, verbose: bool, as_json: bool, expression: str, journey: int | None, container: str | None, drops: bool,
           tcp_problems: bool, count: int | None, speed: str, follow: bool) -> int:
    """Show the run that FILE recorded as the live command showed it.

    FILE may be sample:NAME, a trace that comes with dnettrace; sample: alone lists them.

    \b
      sudo dnettrace ping c1 c2 -c 1 -w ping.pcapng
      dnettrace replay ping.pcapng -v
      dnettrace replay sample:masquerade
    """
    from tracer.cli.samples import SAMPLE, listing

    if file == SAMPLE:
        click.echo(listing())
        return ExitStatus.OK
    from tracer.capture.reader import Reader
    from tracer.cli.output import live_renderer_for, renderer_for

    choice = Choice(journey, container, expression, drops, tcp_problems, count)
    choice.test()  # say what libpcap does not take before anything is shown
    with opened(file) as stream:
        reader = Reader(stream, file, _more if follow else lambda: False)
        items: Iterable[Item] = reader
        if factor := SPEEDS[speed]:
            items = paced(reader, factor)
        return shown(items, lambda: reader.cut, file, choice, verbose, lambda live: live_renderer_for(
            as_json, verbose) if live else renderer_for(as_json))


def shown(items: Iterable[Item], cut: Callable[[], str | None], file: str, choice: Choice, verbose: bool,
          renderer: Callable[[bool], Any]) -> int:
    """Tell a run's items. `cut` says afterwards why the file ended before the run did. `renderer`: for live, or for ping."""
    telling: Telling | LiveTelling | None = None
    interrupted = False
    try:
        for item in items:
            if telling is None:
                telling = _telling(item, choice, verbose, renderer(isinstance(item, LiveBegin)))
            elif telling.enough and isinstance(item, Batch | Sweep | Sent | Tell):  # as the live command stops
                telling.play(Finish())
                return telling.status
            telling.play(item)
    except KeyboardInterrupt:
        interrupted = True
    if telling and (interrupted or cut()):
        telling.break_off()
        if why := cut():
            telling.warn(f"{file} is not whole, and shown as far as it goes: {why}")
        telling.play(Finish())
    return ExitStatus.INTERRUPTED if interrupted or telling is None else telling.status


def _telling(begin: Item, choice: Choice, verbose: bool, renderer: Any) -> Telling | LiveTelling:
    chosen = choice.test()
    if isinstance(begin, LiveBegin):
        from tracer.cli.live_telling import LiveTelling, Shown
        return LiveTelling(renderer, Shown(choice.drops, choice.tcp_problems, choice.count, chosen))
    from tracer.cli.telling import Telling

    if choice == Choice():
        return Telling(renderer, verbose)
    from tracer.journey.problems import Problems
    from tracer.render.chosen import ChosenRenderer

    problems = Problems()

    def told(one: Journey) -> bool:
        problem = problems.of(one)
        return (chosen is None or chosen(one)) and (not choice.drops or one.end.result is Result.DROPPED) \
            and (not choice.tcp_problems or problem is not None)

    part = ChosenRenderer(renderer, told, choice.count)
    return Telling(part, verbose, part.enough)


def paced(items: Iterable[Item], factor: float) -> Iterator[Item]:
    """The same when they happened, `factor` times as fast."""
    first: int | None = None
    begun = time.monotonic()
    for item in items:
        when = _when(item)
        if when is not None:
            first = when if first is None else first
            time.sleep(min(max(begun + (when - first) / 1e9 / factor - time.monotonic(), 0), WAIT_S))
        yield item


def _when(item: Item) -> int | None:
    """CLOCK_MONOTONIC, ns."""
    if isinstance(item, Batch):
        event: Event | None = item.events[-1] if item.events else None
        return event.time if event else None
    if isinstance(item, Sent):
        return item.when
    return item.now if isinstance(item, Sweep | Armed) else None


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    from tracer.cli.samples import path_of

    try:
        stream = open(path_of(file), "rb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    with stream:
        yield stream


def _more() -> bool:
    time.sleep(LOOK_S)
    return True
