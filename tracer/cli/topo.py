"""`dnettrace topo`: the picture of the network, the tables beside it, and what will bite in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tracer.cli.output import target_file
from tracer.errors import ExitStatus

if TYPE_CHECKING:
    from tracer.cli.topo_source import Source
    from tracer.map.picture import Choice
    from tracer.model.journey import Journey
    from tracer.model.picture import Picture, Table

TABLES = ("bridges", "links", "routes", "neighbors", "rules")
FORMATS = ("text", "json", "mermaid", "dot", "svg", "html")


@click.command()
@click.argument("words", nargs=-1, metavar="[bridges|links|routes|neighbors|rules] [FILE]")
@click.option("--network", metavar="NAME", help="Only this network: Docker's name of it, or its bridge's.")
@click.option("--container", metavar="NAME", help="Only this container.")
@click.option("--for", "goal", metavar="ADDRESS", help="routes: which row this address matches, with the arithmetic.")
@click.option("--from", "start", metavar="NAME", help="routes: of this container or namespace. Default: the host.")
@click.option("--path", metavar="A:B[:PORT[/udp]]", help="The way that a packet from A to B should take; with rules: those "
              "that it could meet. B may be an address, in IPv6 in brackets.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True,
              help="Tables have text and json only.")
@click.option("-o", "--output", metavar="FILE", help="Default: standard output.")
@click.option("--force", is_flag=True, help="Replace it if it is there.")
@click.option("-v", "--verbose", is_flag=True, help="--path: with each rule, and hooks without tables.")
@click.pass_context
def topo(context: click.Context, words: tuple[str, ...], network: str | None, container: str | None, goal: str | None,
         start: str | None, path: str | None, form: str, output: str | None, force: bool, verbose: bool) -> int:
    """Show the network: bridges and their ports, which container hangs where, what has no bridge, and what will bite.

    With bridges, links, routes, neighbors or rules: these as tables, each with what it means and the command that would
    show it. With --path A:B: the way that a packet should take by the present tables, hop for hop; nothing is sent. With
    FILE, a trace: the network as it was recorded, without root. Exit status 1 if something will bite.

    \b
      sudo dnettrace topo
      sudo dnettrace topo routes --from c1 --for 172.17.0.3
      sudo dnettrace topo --path c1:c2:80
      sudo dnettrace topo --format html -o network.html
    """
    table, file = _split(context, words)
    for option, value in (("--for", goal), ("--from", start)):
        if value is not None and table != "routes":
            raise click.UsageError(f"{option} is for `dnettrace topo routes`.", context)
    if path is not None and table not in (None, "rules"):
        raise click.UsageError(f"--path is for `dnettrace topo` and `dnettrace topo rules`: leave out {table}.", context)
    if path is not None and (network or container):
        raise click.UsageError("--path takes neither --network nor --container: it names both ends.", context)
    if verbose and (path is None or table):
        raise click.UsageError("-v is for `dnettrace topo --path A:B`.", context)
    if (table or path) and form not in ("text", "json"):
        raise click.UsageError(f"{'Tables have' if table else '--path has'} no {form}: choose text or json"
                               f"{f', or leave out {table}' if table else ''}.", context)
    if table in ("routes", "rules") and (network or container):
        raise click.UsageError(f"{table} takes neither --network nor --container: "
                               + ("--from NAME chooses whose." if table == "routes" else "--path chooses which."), context)
    from tracer.cli.topo_source import live, recorded
    from tracer.map.picture import Choice

    source = recorded(file) if file else live(in_lab=bool(context.obj))
    if path is not None and table is None:
        return _expected(source.expected(path), verbose, form, output, force)
    choice = Choice(network, container)
    source.must_have(choice)
    if table is None:
        picture = source.picture(choice)
        _picture(picture, source, choice, form, output, force)
        return ExitStatus.LOST if picture.findings else ExitStatus.OK
    tables = source.tables(table, choice, goal, start, path)
    _tables(tables, form, output, force)
    return ExitStatus.OK


def _split(context: click.Context, words: tuple[str, ...]) -> tuple[str | None, str | None]:
    table = words[0] if words and words[0] in TABLES else None
    rest = words[1:] if table else words
    if len(rest) > 1:
        raise click.UsageError(f"{rest[0]!r} and {rest[1]!r} are one word too many: give a table, a FILE, or both.", context)
    return table, rest[0] if rest else None


def _picture(picture: Picture, source: Source, choice: Choice, form: str, output: str | None, force: bool) -> None:
    with target_file(output, force) as target:
        if form == "text":
            from tracer.render.text import PlainConsole
            from tracer.render.topo_text import TopoText
            TopoText(PlainConsole(file=target)).show(picture)
        elif form == "json":
            from tracer.render.topo_json import write_picture
            write_picture(picture, target)
        elif form == "html":
            from tracer.render.topo_html import page
            target.write(page(picture, source.every_table(choice)))
        else:
            from tracer.render import topo_dot, topo_mermaid, topo_svg
            made = {"mermaid": topo_mermaid.flowchart, "dot": topo_dot.graph, "svg": topo_svg.svg}
            target.write(made[form](picture))


def _expected(journey: Journey, verbose: bool, form: str, output: str | None, force: bool) -> int:
    from tracer.model.journey import Result
    from tracer.render.expected import ExpectedText, write_expected
    from tracer.render.text import PlainConsole

    with target_file(output, force) as target:
        if form == "json":
            write_expected(journey, target)
        else:
            ExpectedText(PlainConsole(file=target)).expected(journey, verbose)
    return ExitStatus.OK if journey.end.result in (Result.DELIVERED, Result.LEFT) else ExitStatus.LOST


def _tables(tables: list[Table], form: str, output: str | None, force: bool) -> None:
    with target_file(output, force) as target:
        if form == "json":
            from tracer.render.topo_json import write_tables
            write_tables(tables, target)
        else:
            from tracer.render.text import PlainConsole
            from tracer.render.topo_tables import TopoTables
            TopoTables(PlainConsole(file=target)).show(tables)


