"""`dnettrace`: the commands, and what every one of them does with an error."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from collections.abc import Sequence

import click

from tracer import __version__
from tracer.cli.diff import diff
from tracer.cli.doctor import doctor
from tracer.cli.export import export
from tracer.cli.info import info
from tracer.cli.lab import lab
from tracer.cli.live import live
from tracer.cli.ping import ping
from tracer.cli.record import record
from tracer.cli.replay import replay
from tracer.cli.topo import topo
from tracer.errors import ExitStatus, UserError
from tracer.render.alphabet import Alphabet


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dnettrace")
@click.option("--lab", "in_lab", is_flag=True, help="Trace in the built-in lab: `host` and all names are the lab's.")
@click.pass_context
def commands(context: click.Context, in_lab: bool) -> None:
    """Follow packets through Docker's bridge networks, hop by hop: container, veth, docker0, iptables, routes.

    Nothing that it does to the machine outlives it. Tracing needs root.
    """
    context.obj = in_lab


commands.add_command(ping)
commands.add_command(live)
commands.add_command(record)
commands.add_command(replay)
commands.add_command(export)
commands.add_command(diff)
commands.add_command(info)
commands.add_command(doctor)
commands.add_command(topo)
commands.add_command(lab)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; every error that a user can meet is one sentence on standard error."""
    try:
        # not commands.main(): it has its own mind about closed pipes
        with commands.make_context("dnettrace", list(sys.argv[1:] if arguments is None else arguments)) as context:
            return int(commands.invoke(context) or ExitStatus.OK)
    except click.exceptions.Exit as done:  # --help, --version
        return done.exit_code
    except click.UsageError as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click 8.2; before, an Exit
            print(error.format_message(), file=sys.stderr)
            return ExitStatus.ERROR
        hint = f" See `{error.ctx.command_path} --help`." if error.ctx else ""
        _say(f"{error.format_message()}{hint}")
    except click.ClickException as error:
        _say(error.format_message())
    except UserError as error:
        _say(str(error))
    except (KeyboardInterrupt, click.Abort):
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:
        _close_output()  # whoever read it has seen enough
        return ExitStatus.OK
    except OSError as error:
        about = f" ({error.filename})" if error.filename else ""
        mend = "free some space" if error.errno == errno.ENOSPC else \
            "if a container or namespace ended meanwhile, start it again"
        _say(f"{error.strerror or error}{about}: {mend}.")
        _close_output()
    return ExitStatus.ERROR


def _say(sentence: str) -> None:
    """To standard error, on one line: names in it come from outside, and may hold escape sequences."""
    print(f"dnettrace: {Alphabet(sys.stderr.encoding).show(sentence)}", file=sys.stderr)


def _close_output() -> None:
    """Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def program() -> None:
    """The console script."""
    gc.set_threshold(100_000, 20, 100)  # events and hops hold few cycles: to look each 700 objects takes a tenth of the time
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    sys.exit(main())


if __name__ == "__main__":
    program()
