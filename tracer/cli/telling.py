"""The story of a run, told as its items come in: by a live session and by a replay alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from tracer.errors import ExitStatus
from tracer.journey.assemble import Assembler
from tracer.journey.causes import explain, explain_failure
from tracer.journey.counted import counted
from tracer.journey.expectation import compared
from tracer.journey.families import families
from tracer.journey.lookups import sentences
from tracer.journey.owners import owned
from tracer.model.journey import BRANCHES, Journey, Result, Stage
from tracer.model.probes import Batch, Machine
from tracer.model.report import Failure, RoundTrip, Summary
from tracer.model.run import Answer, Begin, Item, Know, Sent, Sweep, Tell
from tracer.render import words
from tracer.render.base import Renderer

FAILURES = 20  # told one by one in the summary


@dataclass(slots=True)
class Tally:
    """What the summary counts."""

    sent: int = 0
    journeys: int = 0
    lookups: int = 0
    answered: int = 0
    rtt_sum: float = 0.0  # ms, as are the next two
    rtt_min: float = float("inf")
    rtt_max: float = 0.0
    states: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    roles: dict[str, set[str]] = field(default_factory=dict)
    routed: bool = False
    failures: deque[Failure] = field(default_factory=lambda: deque(maxlen=FAILURES))
    failed: int = 0

    def answer(self, rtt: float, state: str) -> None:
        self.answered += 1
        if state:
            self.states[state] = self.states.get(state, 0) + 1
        self.rtt_sum += rtt
        self.rtt_min, self.rtt_max = min(self.rtt_min, rtt), max(self.rtt_max, rtt)

    def fail(self, failure: Failure) -> None:
        self.failed += 1
        self.failures.append(failure)

    def add(self, journey: Journey) -> None:
        self.journeys += 1
        self.ends[journey.end.result.value] = self.ends.get(journey.end.result.value, 0) + 1
        if journey.kind == "arp":
            self.lookups += 1
        elif journey.kind not in BRANCHES:
            for hop in journey.hops:
                self.routed |= hop.stage is Stage.ROUTE and hop.node == "host"
                if hop.bridge and hop.role:
                    self.roles.setdefault(hop.bridge, set()).add(hop.role.value)


class Telling:
    """Takes the items of one run, Begin first, and tells `renderer`."""

    assembler: Assembler  # from Begin on

    def __init__(self, renderer: Renderer, verbose: bool, enough: Callable[[], bool] = lambda: False) -> None:
        """`enough`: more of the run is of no use."""
        self._renderer, self._verbose, self._enough = renderer, verbose, enough
        self.tally = Tally()
        self.waiting: dict[int, int] = {}  # probes that are not told yet -> when they were sent, CLOCK_MONOTONIC ns
        self._answered: set[int] = set()  # of those that are waiting
        self._refused: set[int] = set()  # that never left, of those that are waiting
        self._expected: Journey | None = None
        self._errors: dict[int, str] = {}  # seq -> what came instead of an answer

    @property
    def status(self) -> ExitStatus:
        return ExitStatus.OK if self.tally.answered == self.tally.sent else ExitStatus.LOST

    @property
    def enough(self) -> bool:
        return self._enough()

    def break_off(self) -> None:
        """The run will not go on: tell of the probes that it leaves."""
        for seq in sorted(self.waiting):
            self.play(Tell(seq, interrupted=True))

    def warn(self, text: str) -> None:
        self._renderer.warning(text)

    def number(self, journey: int) -> int | None:
        """The number, for a person, of one of the kernel's journeys that is not told yet."""
        return self.assembler.number(journey)

    def play(self, item: Item) -> None:
        if isinstance(item, Batch):
            self.assembler.feed(item)
        elif isinstance(item, Machine):
            self._machine = item
        elif isinstance(item, Begin):
            self._begin = item
            self._machine = item.machine
            self._expected = item.expected
            self.assembler = Assembler(item.selection, item.topology, lambda: self._machine, item.target)
            self._renderer.header(item.start)
        elif isinstance(item, Know):
            self.assembler.know(item.topology, item.target)
        elif isinstance(item, Sent):
            self._sent(item)
        elif isinstance(item, Answer):
            self._answer(item)
        elif isinstance(item, Tell):
            self._tell(item)
        elif isinstance(item, Sweep):
            self._show(self.assembler.late(self.waiting, item.now))
        else:
            self._finish()

    def _sent(self, item: Sent) -> None:
        self.tally.sent += 1
        self.waiting[item.seq] = item.when
        self.assembler.sent(item.seq, item.when)  # what refused it may have had a packet to drop
        if item.failure is not None:
            topology, selection = self.assembler.topology, self._begin.selection
            source = topology.namespaces.get(self._begin.source)
            cause = explain_failure(item.number, source, str(selection.destination), topology) if source else None
            self.tally.fail(Failure(item.seq, f"never left: {item.failure}", cause))
            self._refused.add(item.seq)

    def _answer(self, item: Answer) -> None:
        if item.seq not in self.waiting:
            return
        if item.error is not None:
            self._errors.setdefault(item.seq, item.error)
        elif item.seq not in self._answered:
            self._answered.add(item.seq)
            self.tally.answer(item.ms, item.state)
            if item.reply:
                self.assembler.answered(item.seq)

    def _tell(self, item: Tell) -> None:
        seq = item.seq
        if self.waiting.pop(seq, None) is None:
            return
        journeys = self.assembler.take(seq)
        if item.risen is not None:
            journeys = counted(journeys, item.risen)
        if seq not in self._answered and seq not in self._refused:
            self.tally.fail(Failure(seq, self._why(seq, journeys, item.interrupted)))
        silent = {seq} - self._answered
        self._answered.discard(seq)
        self._refused.discard(seq)
        self._errors.pop(seq, None)
        self._show(journeys, silent)

    def _finish(self) -> None:
        self._show(self.assembler.rest())
        self._renderer.summary(self._summary())

    def _why(self, seq: int, journeys: list[Journey], interrupted: bool) -> str:
        for journey in journeys:
            if journey.kind in ("request", "reply") and journey.end.result is Result.DROPPED:
                return f"the {journey.kind} was dropped in {journey.end.node}"
        if error := self._errors.get(seq):
            return error
        if interrupted:
            return "no answer before the interruption"
        means = {"tcp": ": filtered", "udp": ": open or filtered"}.get(self._begin.selection.transport, "")
        return f"no answer within {self._begin.timeout:g} s{means}"

    def _show(self, journeys: list[Journey], silent: Collection[int] = ()) -> None:
        """`silent`: of these probes, those that are over without an answer."""
        journeys = [owned(journey, self.assembler.topology) for journey in journeys]
        journeys = explain(journeys, self.assembler.topology, silent, self.assembler.missing)
        for journey in journeys:
            self.tally.add(journey)
        if not self._verbose:
            for sentence in sentences(journeys, self.assembler.topology):
                self._renderer.note(sentence)
        for journey, branches in families(journeys):
            self._renderer.journey(journey, self._verbose, branches)
        self._compare(journeys)
        if not self._verbose and (served := [journey for journey in journeys if words.is_served(journey)]):
            self._renderer.note(words.served(served))

    def _compare(self, journeys: list[Journey]) -> None:
        """The first request with its expected way, once."""
        request = next((journey for journey in journeys if journey.kind == "request"), None)
        if request and self._expected:
            alike, sentence = compared(self._expected, request)
            (self._renderer.note if alike else self._renderer.warning)(sentence)
            self._expected = None

    def _summary(self) -> Summary:
        tally, assembler = self.tally, self.assembler
        rtt = RoundTrip(tally.rtt_min, tally.rtt_sum / tally.answered, tally.rtt_max) if tally.answered else None
        notes = (f"{tally.failed} went without an answer; the last {FAILURES} of them:",) \
            if tally.failed > FAILURES else ()
        return Summary(tally.sent, tally.answered, tally.journeys, assembler.events, assembler.lost,
                       {name: tuple(sorted(roles)) for name, roles in sorted(tally.roles.items())}, tally.ends, rtt,
                       tuple(tally.failures), tally.lookups, tally.states, notes, tally.routed)
