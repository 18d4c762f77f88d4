"""`dnettrace ping`: echo requests from one place to another, and the way of each."""

from __future__ import annotations

import click


@click.command()
@click.argument("source")
@click.argument("destination")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N requests. Default: Ctrl-C stops.")
@click.option("-i", "--interval", type=click.FloatRange(min=0.01), default=1.0, metavar="SECONDS", show_default=True,
              help="Time from one request to the next.")
@click.option("-W", "--timeout", type=click.FloatRange(min=0.01), default=4.0, metavar="SECONDS", show_default=True,
              help="How long to wait for an answer. A neighbour that does not answer is given up after 3 s.")
@click.option("-s", "--size", type=click.IntRange(0, 65527), default=56, metavar="BYTES", show_default=True,
              help="Payload of a request.")
@click.option("-t", "--ttl", type=click.IntRange(1, 255), metavar="N", help="Time to live (IPv6: hop limit).")
@click.option("-4", "version", flag_value=4, type=int, help="IPv4 only.")
@click.option("-6", "version", flag_value=6, type=int, help="IPv6 only.")
@click.option("-v", "--verbose", is_flag=True, help="Show neighbour lookups, copies and hooks without tables too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def ping(context: click.Context, source: str, destination: str, count: int | None, interval: float, timeout: float,
         size: int, ttl: int | None, version: int | None, verbose: bool, as_json: bool) -> int:
    """Send echo requests from SOURCE to DESTINATION and show each hop of each request and reply.

    SOURCE is a container (name or id), netns:NAME (a bare NAME where no container has it), pid:N, or host: the network
    namespace that this command runs in. DESTINATION is any of these, an IP address, or a name that SOURCE can resolve.

    \b
      sudo dnettrace ping c1 c2
      sudo dnettrace ping c1 host -c 1
      sudo dnettrace ping c1 203.0.113.1 --json
    """
    from tracer.cli.session import Echo, Session

    return Session.open(source, destination, Echo(count, interval, timeout, size, ttl, version), in_lab=bool(context.obj),
                        verbose=verbose, as_json=as_json).run()
