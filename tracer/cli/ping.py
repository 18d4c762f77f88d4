"""`dnettrace ping`: echo requests from one place to another, and the way of each."""

from __future__ import annotations

import click
from click.core import ParameterSource

from tracer.cli.options import finite


@click.command()
@click.argument("source")
@click.argument("destination")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N requests. Default: Ctrl-C stops.")
@click.option("-i", "--interval", type=click.FloatRange(min=0.01), default=1.0, metavar="SECONDS", show_default=True,
              callback=finite, help="Time from one request to the next.")
@click.option("-W", "--timeout", type=click.FloatRange(min=0.01), default=4.0, metavar="SECONDS", show_default=True,
              callback=finite, help="How long to wait for an answer. A silent neighbour is given up after 3 s.")
@click.option("-s", "--size", type=click.IntRange(0, 65527), default=56, metavar="BYTES", show_default=True,
              help="Payload of a request.")
@click.option("-t", "--ttl", type=click.IntRange(1, 255), metavar="N", help="Time to live (IPv6: hop limit).")
@click.option("--tcp", type=click.IntRange(1, 65535), metavar="PORT", help="A TCP SYN to this port instead.")
@click.option("--udp", type=click.IntRange(1, 65535), metavar="PORT", help="A UDP datagram to this port instead.")
@click.option("--arp", is_flag=True, help="An ARP request (IPv6: neighbour solicitation) instead.")
@click.option("-4", "only_v4", is_flag=True, help="IPv4 only.")
@click.option("-6", "only_v6", is_flag=True, help="IPv6 only.")
@click.option("-v", "--verbose", is_flag=True, help="Show neighbour lookups, copies and hooks without tables too.")
@click.option("--no-rules", is_flag=True, help="Do not trace which firewall rules the packets meet.")
@click.option("--expected", is_flag=True, help="Say whether the first request goes as the tables tell (`dnettrace topo "
              "--path`), and if not, where its way first differs.")
@click.option("-w", "--write", metavar="FILE", help="Record the run as pcapng: for `dnettrace replay`, Wireshark, tcpdump.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option("--lab", "in_lab", is_flag=True, help="As `dnettrace --lab ping`.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def ping(context: click.Context, source: str, destination: str, count: int | None, interval: float, timeout: float,
         size: int, ttl: int | None, tcp: int | None, udp: int | None, arp: bool, only_v4: bool, only_v6: bool,
         verbose: bool, no_rules: bool, expected: bool, write: str | None, force: bool, in_lab: bool, as_json: bool) -> int:
    """Send echo requests, or other probes, from SOURCE to DESTINATION and show each hop of each probe and answer.

    SOURCE is a container (name or id), netns:NAME (a bare NAME where no container has it), pid:N, or host: the network
    namespace that this command runs in. DESTINATION is any of these, an IP address, or a name that SOURCE can resolve.

    \b
      sudo dnettrace ping c1 c2
      sudo dnettrace ping c1 host -c 1
      sudo dnettrace ping c1 203.0.113.1 --json
    """
    if sum((tcp is not None, udp is not None, arp)) > 1:
        raise click.UsageError("--tcp, --udp and --arp exclude each other: give one.", context)
    if arp and (ttl is not None or context.get_parameter_source("size") is not ParameterSource.DEFAULT):
        raise click.UsageError("--arp has neither a payload nor a time to live: leave out -s and -t.", context)
    if tcp is not None and context.get_parameter_source("size") is not ParameterSource.DEFAULT:
        raise click.UsageError("A TCP SYN has no payload: leave out -s.", context)
    if arp and expected:
        raise click.UsageError("--expected is for what goes by IP: leave out --arp.", context)
    if only_v4 and only_v6:
        raise click.UsageError("-4 and -6 exclude each other: give one.", context)
    from tracer.cli.session import Plan, Session

    transport, port = ("tcp", tcp) if tcp else ("udp", udp) if udp else ("arp", None) if arp else ("icmp", None)
    version = 4 if only_v4 else 6 if only_v6 else None
    plan = Plan(count, interval, timeout, size, ttl, version, transport, port, not no_rules, write, force,
                expected)
    return Session.open(source, destination, plan, in_lab=in_lab or bool(context.obj),
                        verbose=verbose, as_json=as_json).run()
