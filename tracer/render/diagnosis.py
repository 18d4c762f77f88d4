"""What `dnettrace doctor` found, on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from rich.console import Console
from rich.text import Text

from tracer.model.health import Ability, Diagnosis, Lack, State
from tracer.model.journey import Result
from tracer.render.alphabet import Alphabet
from tracer.render.styles import NAME, RESULT

_MARKS = {State.GOOD: ("✓", RESULT[Result.DELIVERED]), State.LESS: ("!", RESULT[Result.UNKNOWN]),
          State.BAD: ("✗", RESULT[Result.DROPPED]), State.UNKNOWN: ("?", RESULT[Result.UNKNOWN]), None: ("·", "")}


def print_text(diagnosis: Diagnosis, console: Console) -> None:
    """A line a finding, then one a command, then what mends what they lack. Only what is wrong takes more lines."""
    names = [*(check.name for check in diagnosis.checks), *(ability.command for ability in diagnosis.abilities)]
    screen = _Screen(console, max(map(len, names)) + 2)
    health = diagnosis.health
    screen.line(f"dnettrace {diagnosis.version} on {health.where}, Linux {health.release} {health.machine}", NAME)
    for check in diagnosis.checks:
        screen.row(check.state, check.name, check.text)
    screen.line("")
    before = ""
    for ability in diagnosis.abilities:
        said = _ability(ability)
        screen.row(ability.state, ability.command, "the same" if said == before and ability.lacks else said, NAME)
        before = said
    lacks = _lacks(diagnosis.abilities)
    for at, (lack, commands) in enumerate(lacks, 1):
        screen.lack(lack, commands)
        if at == len(lacks) or lacks[at][0].mend != lack.mend:
            screen.mend(lack.mend)


def _ability(ability: Ability) -> str:
    if not ability.lacks:
        return "all of it" if ability.command != "replay" else "all of it: files need neither root nor BPF"
    fatal = [lack.what for lack in ability.lacks if lack.fatal]
    if fatal:
        return f"cannot run without {', '.join(dict.fromkeys(fatal))}"
    return f"runs, without {', '.join(dict.fromkeys(lack.what for lack in ability.lacks))}"


def _lacks(abilities: Sequence[Ability]) -> list[tuple[Lack, list[str]]]:
    """Each once, with the commands that it concerns; those that let nothing run first."""
    found: dict[Lack, list[str]] = {}
    for ability in abilities:
        for lack in ability.lacks:
            found.setdefault(lack, []).append(ability.command)
    return sorted(found.items(), key=lambda item: not item[0].fatal)


class _Screen:
    def __init__(self, console: Console, room: int) -> None:
        """`room`: columns of a row's name."""
        self._console, self._room = console, room
        self._show = Alphabet(console.encoding).show
        self._width = console.width if console.is_terminal else None

    def line(self, text: str, style: str = "") -> None:
        self._print(Text(self._show(text), style))

    def row(self, state: State | None, name: str, text: str, style: str = "") -> None:
        mark, colour = _MARKS[state]
        first, *rest = self._wrapped(text, self._room + 2)
        self._print(Text.assemble((self._show(mark), colour), " ", (f"{name:{self._room}}", style), first))
        for line in rest:
            self._print(Text(" " * (self._room + 2) + line))

    def lack(self, lack: Lack, commands: Sequence[str]) -> None:
        mark, colour = _MARKS[State.BAD if lack.fatal else State.LESS]
        first, *rest = self._wrapped(f"{lack.what} ({', '.join(commands)}): {lack.why}", 2)
        self._print(Text.assemble((self._show(mark), colour), " ", first))
        for line in rest:
            self._print(Text(f"  {line}"))

    def mend(self, text: str) -> None:
        for line in self._wrapped(f"mend: {text}", 2):
            self._print(Text(f"  {line}"))

    def _wrapped(self, text: str, indent: int) -> list[str]:
        shown = self._show(text)
        if self._width is None:
            return [shown]
        return wrap(shown, max(self._width - indent, 20), break_long_words=False, break_on_hyphens=False) or [""]

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)
