"""`dnettrace diff`: what changed between two runs."""

from __future__ import annotations

import sys
from enum import IntEnum

import click

from tracer.model.journey import Journey


class Status(IntEnum):
    SAME = 0
    DIFFERENT = 1


@click.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
def diff(before: str, after: str) -> int:
    """Say for each probe at which hop, rule or route its way first differs between the runs that A and B recorded.

    Devices of containers that Docker names anew count as the same; times do not count. Status 0: no difference, 1: there is
    one.

    \b
      sudo dnettrace ping c1 c2 -c 1 -w before.pcapng
      sudo iptables -I DOCKER-USER -s 172.17.0.2 -j DROP
      sudo dnettrace ping c1 c2 -c 1 -w after.pcapng
      dnettrace diff before.pcapng after.pcapng
    """
    from tracer.journey.differences import difference, in_full, pairs
    from tracer.render.alphabet import Alphabet

    alphabet = Alphabet(sys.stdout.encoding)
    found = list(pairs(_journeys(before), _journeys(after)))
    different = 0
    for pair in found:
        if (one := difference(*pair)) is None:
            continue
        different += 1
        alike = f"the first {one.same} hops are alike, up to {one.after}" if one.same else "from the start"
        for line in (f"{one.probe}: {alike}", f"  A  {one.one or 'not there'}", f"  B  {one.other or 'not there'}"):
            click.echo(alphabet.show(line))
    click.echo(f"{different} of {len(found)} packets differ" if different else
               f"no difference in the ways of {len(found)} packets")
    if partly := sum(not all(one is None or in_full(one) for one in pair) for pair in found):
        click.echo(f"of {partly} of them not everything was observed (lost events, or rules): there may be more differences")
    return Status.DIFFERENT if different else Status.SAME


MOST = 100_000  # journeys of a file


def _journeys(file: str) -> list[Journey]:
    from tracer.capture.reader import Reader
    from tracer.cli.replay import Choice, opened, shown
    from tracer.journey.differences import compared
    from tracer.render.collected import Collected, LiveCollected

    collected = Collected(), LiveCollected()
    with opened(file) as stream:
        reader = Reader(stream, file)
        shown(reader, lambda: reader.cut, file, Choice(count=MOST), True, lambda live: collected[live])
    return [journey for one in collected for journey in one.journeys if compared(journey)]
