"""`dnettrace live`: real traffic, hop by hop."""

from __future__ import annotations

import click

from tracer.cli.options import finite


@click.command()
@click.argument("words", metavar="[FILTER]", nargs=-1)
@click.option("--container", "containers", metavar="NAME", multiple=True,
              help="Only packets from or to this container; repeatable. It may start later.")
@click.option("--network", "networks", metavar="NAME", multiple=True, help="Only packets from or to this Docker network.")
@click.option("--drops", is_flag=True, help="Only packets that were dropped, each with its cause.")
@click.option("--tcp-problems", is_flag=True, help="Only TCP retransmissions and resets.")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N journeys.")
@click.option("--duration", type=click.FloatRange(min=0.1), metavar="SECONDS", callback=finite, help="Stop after so long.")
@click.option("-v", "--verbose", is_flag=True, help="All hops of each journey, by more probes where the kernel has them.")
@click.option("-w", "--write", metavar="FILE", help="Record the run as pcapng: for `dnettrace replay`, Wireshark, tcpdump.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option("--lab", "in_lab", is_flag=True, help="As `dnettrace --lab live`.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def live(context: click.Context, words: tuple[str, ...], containers: tuple[str, ...], networks: tuple[str, ...],
         drops: bool, tcp_problems: bool, count: int | None, duration: float | None, verbose: bool, write: str | None,
         force: bool, in_lab: bool, as_json: bool) -> int:
    """Follow real packets that match FILTER, an expression as tcpdump takes it, and their answers, through NAT too.

    One line a packet; without a FILTER, every packet. What is in a packet's payload often cannot be matched: the kernel
    keeps it apart from the headers.

    \b
      sudo dnettrace live 'tcp port 80 and host 172.17.0.3'
      sudo dnettrace live --container c1 --drops
    """
    from tracer.cli.streaming import Following, Stream

    following = Following(" ".join(words), containers, networks, drops, tcp_problems, count, duration, write, force)
    return Stream.open(following, in_lab=in_lab or bool(context.obj), verbose=verbose, as_json=as_json).run()
