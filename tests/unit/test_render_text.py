"""The text output at 40, 80 and 160 columns and in a pipe, to the character."""

# ruff: noqa: E501  # lines in a pipe are as long as they need to be

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.unit import test_render_fixtures as given
from tracer.model.journey import Cause, Journey
from tracer.render.base import Renderer
from tracer.render.text import TextRenderer


class Stream(io.StringIO):
    """With an encoding of its own, as a terminal has."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._named = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._named


def renderer(width: int | None, encoding: str = "utf-8", color: Any = None) -> tuple[Renderer, Stream]:
    """For a terminal of so many columns, or for a pipe."""
    stream = Stream(encoding)
    console = Console(file=stream, width=width, force_terminal=width is not None, color_system=color, _environ={})
    return TextRenderer(console), stream


def run(width: int | None, encoding: str = "utf-8") -> str:
    made, stream = renderer(width, encoding)
    made.header(given.START)
    made.note("c1 asked for the MAC of c2 first: 3 hops, 61 µs")
    for journey in (given.REQUEST, given.DROPPED, given.UNKNOWN, given.MASQUERADED):
        made.journey(journey)
    made.summary(given.FAILED)
    return stream.getvalue()


def shown(journey: Journey, width: int | None = None, verbose: bool = False, copies: tuple[Journey, ...] = (),
          encoding: str = "utf-8") -> list[str]:
    made, stream = renderer(width, encoding)
    made.journey(journey, verbose, copies)
    return stream.getvalue().splitlines()


WIDTHS = (40, 80, 160, None)  # None: a pipe


def screen(width: int | None) -> Path:
    return Path(__file__).parent / "screens" / f"{width or 'pipe'}.txt"


FLOODED = """\
#1 ARP request  c1 → c2  28 bytes  ✗ dropped in host after 11 µs
   c1    eth0     egress           0.0 µs
   host  docker0  l2_flood       +11.0
✗ dropped in host docker0 (OTHERHOST)
   + 60 copies
     1 delivered to c2:
      host  veth0000000  egress           0.0 µs
      c2    eth0         deliver        +61.0
     59 dropped in c10, c11, c12, c13, c14, c15, c16, c17, c18, c19, c20, c21 and 47 more (ARP_NOT_MINE); the way of the one in c3:
      host  veth0000001  egress           0.0 µs
      c3    eth0         drop            +0.9
"""


@pytest.mark.parametrize("width", WIDTHS)
def test_to_the_character(width: int | None) -> None:
    """After a change of words, `python -m tests.unit.test_render_text` writes the screens anew: read the difference."""
    assert run(width) == screen(width).read_text()


@pytest.mark.parametrize("width", [20, 40, 60, 72, 80, 100, 160])
def test_nothing_is_wider_than_the_terminal_and_nothing_is_cut(width: int) -> None:
    text = run(width)
    assert max(map(len, text.splitlines())) <= width
    letters = re.sub(r"\s", "", text)
    assert len(letters) == len(re.sub(r"\s", "", screen(None).read_text()))  # every character of the pipe's, in another order at most
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_a_stream_that_cannot_show_arrows_gets_ascii() -> None:
    text = run(None, "ascii")
    assert text.isascii()
    assert "c1 172.17.0.2 -> c2 172.17.0.3" in text
    assert "conntrack NEW | nat" in text
    assert "delivered in 47 us" in text
    assert "delivered in 47 µs" in run(None, "iso-8859-1")


def test_text_from_outside_is_spelled_out_and_no_markup_is_taken() -> None:
    lines = shown(given.HOSTILE)
    assert lines[0] == r"#1 echo request  c\x1b[31m1 → [red]c2[/red]  84 bytes  delivered in 0.0 µs"
    assert lines[1].split() == [
        r"c\x1b[31m1", r"e\u202eth", "egress", r"[bold]x[/bold]\x07", "0.0", "µs"]
    made, stream = renderer(None)
    made.warning("\x1b]0;title\x07 [blink]now[/blink] \udcff\n")
    assert stream.getvalue() == "! \\x1b]0;title\\x07 [blink]now[/blink] \\udcff\\n\n"


def test_colours_say_how_it_ended_and_are_only_for_terminals() -> None:
    for journey, code in ((given.REQUEST, "1;32"), (given.DROPPED, "1;31"), (given.UNKNOWN, "1;33")):
        made, stream = renderer(80, color="standard")
        made.journey(journey)
        assert f"\x1b[{code}m" in stream.getvalue().splitlines()[0]
    assert "\x1b" not in run(None)


def test_a_conclusion_is_marked_and_the_mark_explained_once() -> None:
    made, stream = renderer(None)
    made.journey(given.MASQUERADED)
    made.journey(given.MASQUERADED)
    lines = stream.getvalue().splitlines()
    assert len([line for line in lines if line.startswith(" ~ host")]) == 2
    assert len([line for line in lines if line.startswith(" ~ not seen itself")]) == 1


def test_lookups_and_their_copies_are_for_the_verbose_and_sixty_of_them_stay_few_lines() -> None:
    assert shown(given.ARP, copies=given.FLOOD) == []
    assert shown(given.FLOOD[0]) == []
    assert shown(given.ARP, verbose=True, copies=given.FLOOD) == FLOODED.splitlines()


def test_copies_of_a_request_are_counted() -> None:
    assert shown(given.REQUEST, copies=given.FLOOD)[-1] == (
        "   + 60 copies: 1 delivered to c2, 59 dropped in 59 places (ARP_NOT_MINE)")
    assert shown(given.REQUEST, copies=given.FLOOD[:2])[-1] == (
        "   + 2 copies: 1 delivered to c2, 1 dropped in c3 (ARP_NOT_MINE)")


def test_a_long_name_wraps_in_its_column() -> None:
    name = "a-container-with-a-very-long-name"
    lines = shown(replace(given.REQUEST, hops=(given.REQUEST.hops[0]._replace(node=name),)), 80)
    assert [line.split()[0] for line in lines[1:]] == ["a-container-w", "ith-a-very-lo", "ng-name"]


def test_wide_characters_count_as_two_columns() -> None:
    lines = shown(replace(given.REQUEST, hops=(given.REQUEST.hops[0]._replace(node="容器"), given.REQUEST.hops[2])), 80)
    assert lines[1].index("eth0") == lines[2].index("docker0") - 2


if __name__ == "__main__":
    for each in WIDTHS:
        screen(each).write_text(run(each))


CAUSED = replace(given.DROPPED, end=given.DROPPED.end._replace(causes=(
    Cause("networks_isolated", "c1 and c3 are on different Docker networks, which Docker isolates.", ("network web: br-1",),
          "docker network connect web c1"), Cause("other", "c1\x1b[31m is [red]paused[/red]."))))


def test_causes_below_the_end() -> None:
    assert shown(CAUSED)[-3:] == [
        "  cause: c1 and c3 are on different Docker networks, which Docker isolates.",
        "  mend:  docker network connect web c1",
        "  or:    c1\\x1b[31m is [red]paused[/red]."]
    assert shown(CAUSED, verbose=True)[-4:-1] == [
        "  cause: c1 and c3 are on different Docker networks, which Docker isolates.", "  seen:  network web: br-1",
        "  mend:  docker network connect web c1"]
    assert "  mend:  docker network connect web c1" in shown(CAUSED, 40)  # in one piece, to be copied
