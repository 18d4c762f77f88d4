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

    was_up = the_lab.status().up
    the_lab.up()
    click.echo("The lab was up already." if was_up else "The lab is up: try `sudo dnettrace --lab ping c1 c2`.")


@lab.command()
def down() -> None:
    """Remove the lab."""
    from tracer.topology import lab as the_lab

    the_lab.down()
    click.echo("The lab is down.")


@lab.command()
def status() -> None:
    """Say whether the lab is up, and what is in it."""
    from tracer.topology import lab as the_lab

    click.echo(str(the_lab.status()))
