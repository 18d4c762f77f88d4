"""`dnettrace lab`: the built-in lab, a Docker-like host in namespaces, where everything can be tried without Docker."""

from __future__ import annotations

import click


@click.group()
def lab() -> None:
    """A Docker-like host in network namespaces, to try everything where no Docker runs.

    host with docker0; c1 and c2 on it; c3 on a second bridge; outside, behind the host's uplink.
    """


@lab.command()
def up() -> None:
    """Make the lab. It stays until `lab down` or the next boot, and touches nothing outside its own namespaces."""
    from tracer.topology import lab as the_lab

    made = the_lab.up()
    click.echo("The lab is up: try `sudo dnettrace --lab ping c1 c2`." if made else "The lab was up already.")


@lab.command()
def down() -> None:
    """Remove the lab."""
    from tracer.topology import lab as the_lab

    click.echo("The lab is down." if the_lab.down() else "There was no lab.")


@lab.command()
def status() -> int:
    """Say whether the lab is up, and what is in it. Exit status 1 if it is not."""
    from tracer.errors import ExitStatus
    from tracer.topology import lab as the_lab

    now = the_lab.status()
    if not now.up:
        click.echo("The lab is not up." if not now.namespaces else
                   "The lab is half made: `sudo dnettrace lab up` repairs it, `lab down` removes it.")
        return ExitStatus.LOST
    for node, path in now.namespaces.items():
        click.echo(f"{node:8} {path}")
    if not now.bridge_filter:
        click.echo("br_netfilter is off or not loaded: iptables does not see what docker0 switches.")
    return ExitStatus.OK
