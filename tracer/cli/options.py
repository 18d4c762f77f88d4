"""What options of several commands share."""

from __future__ import annotations

import math

import click

journey_option = click.option("--journey", type=click.IntRange(min=1), metavar="N",
                              help="Only journey N: `id` in JSON, frame.packet_id.")


def finite(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of seconds.")
    return value
