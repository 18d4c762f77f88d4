"""`dnettrace doctor`: what this machine lets dnettrace show."""

from __future__ import annotations

import os
import sys

import click


@click.command()
@click.option("--lab", "in_lab", is_flag=True, help="As `dnettrace --lab doctor`: the lab's host instead of this one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def doctor(context: click.Context, in_lab: bool, as_json: bool) -> int:
    """Say what dnettrace can and cannot show on this machine, why, and how to mend it.

    Loads each kind of probe once and takes it away at once; nothing is changed. Exit status 0: `ping` can do all that it
    does anywhere; 1: something is missing for that; 2: doctor itself cannot run.
    """
    from tracer import __version__
    from tracer.doctor.examine import examine
    from tracer.doctor.judge import diagnose
    from tracer.errors import ExitStatus

    diagnosis = diagnose(__version__, examine(os.environ, in_lab=in_lab or bool(context.obj)))
    if as_json:
        from tracer.render.diagnosis_json import print_json
        print_json(diagnosis, sys.stdout)
    else:
        from tracer.render.diagnosis import print_text
        from tracer.render.text import PlainConsole
        print_text(diagnosis, PlainConsole())
    return ExitStatus.OK if diagnosis.whole else ExitStatus.LOST
