"""`dnettrace record`: real traffic into a file, and nothing told of it meanwhile."""

from __future__ import annotations

import click

from tracer.cli.options import finite


@click.command()
@click.argument("words", metavar="[FILTER]", nargs=-1)
@click.option("-w", "--write", metavar="FILE", required=True,
              help="A pcapng file: for `dnettrace replay`, Wireshark, tcpdump.")
@click.option("--container", "containers", metavar="NAME", multiple=True,
              help="Only packets from or to this container; repeatable. It may start later.")
@click.option("--network", "networks", metavar="NAME", multiple=True, help="Only packets from or to this Docker network.")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N packets, or a few more.")
@click.option("--duration", type=click.FloatRange(min=0.1), metavar="SECONDS", callback=finite, help="Stop after so long.")
@click.option("-v", "--verbose", is_flag=True, help="What `live -v` sees: by more probes, where the kernel has them.")
@click.option("--snaplen", type=click.IntRange(min=14), metavar="N",
              help="Keep N bytes of a frame, 110 at most. Default: its headers, without payload.")
@click.option("--rotate", metavar="SIZE|TIME", help="Go on in a new file after so much (500k, 100M, 1G) or so long (30s, "
              "10min, 1h): FILE-0001, FILE-0002.")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="With --rotate: only the last N files stay.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option("--lab", "in_lab", is_flag=True, help="As `dnettrace --lab record`.")
@click.pass_context
def record(context: click.Context, words: tuple[str, ...], write: str, containers: tuple[str, ...],
           networks: tuple[str, ...], count: int | None, duration: float | None, verbose: bool, snaplen: int | None,
           rotate: str | None, keep: int | None, force: bool, in_lab: bool) -> int:
    """Record real packets that match FILTER as `live` follows them, to look at them later.

    \b
      sudo dnettrace record -w web.pcapng 'tcp port 80' --duration 60
      dnettrace replay web.pcapng --drops
    """
    from tracer.capture.rotation import limit

    if keep is not None and rotate is None:
        raise click.UsageError("--keep needs --rotate: without it there is one file.", context)
    try:
        size, seconds = limit(rotate) if rotate else (None, None)
    except ValueError as error:
        raise click.UsageError(f"--rotate: {error}", context) from None
    from tracer.cli.recording import Plan, Recording
    from tracer.cli.streaming import Following

    following = Following(" ".join(words), containers, networks, False, False, count, duration)
    plan = Plan(write, force, snaplen, size, seconds, keep)
    return Recording.open(following, plan, in_lab=in_lab or bool(context.obj), in_detail=verbose).run()
