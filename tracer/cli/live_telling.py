"""The story of a run of `live`, told as its items come in: by the live run and by a replay alike."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from tracer.errors import ExitStatus
from tracer.journey.causes import explain
from tracer.journey.families import families
from tracer.journey.flows import Flows
from tracer.journey.owners import owned
from tracer.journey.problems import Problems
from tracer.journey.stream import Stream
from tracer.model.journey import Journey, Packet, Result
from tracer.model.layout import Place
from tracer.model.probes import Batch, Machine
from tracer.model.report import LiveStatus
from tracer.model.run import Armed, Item, Know, LiveBegin, Pulse, Silence, Sweep
from tracer.render.json_lines import LiveJsonRenderer
from tracer.render.live import LiveRenderer

UNEXPLAINED = 16  # flows whose rules are traced at a time
LATELY = 8  # pulses that a rate is taken over


@dataclass(frozen=True, slots=True)
class Shown:
    """Which of the journeys are told."""

    drops: bool = False
    tcp_problems: bool = False
    count: int | None = None
    chosen: Callable[[Journey], bool] | None = None


class LiveTelling:
    """Takes the items of one run, LiveBegin first, and tells `renderer`."""

    assembler: Stream  # from LiveBegin on

    def __init__(self, renderer: LiveRenderer | LiveJsonRenderer, shown: Shown) -> None:
        self._renderer, self._shown = renderer, shown
        self._flows = Flows()
        self._problems = Problems()
        self.told = self._delivered = self._dropped = self._events = 0
        self._lost: Counter[str] = Counter()
        self._share = self._least = 1.0
        self._seconds = 0.0
        self.unexplained: deque[Packet] = deque(maxlen=UNEXPLAINED)  # that were dropped by a rule nobody knows
        self._lately: deque[tuple[float, int]] = deque([(0.0, 0)], maxlen=LATELY)

    def number(self, journey: int) -> int | None:
        """As Teller.number()."""
        return self.assembler.number(journey)

    @property
    def enough(self) -> bool:
        return self._shown.count is not None and self.told >= self._shown.count

    @property
    def status(self) -> ExitStatus:
        return ExitStatus.OK

    def break_off(self) -> None:
        """The run will not go on: Finish tells all that there is."""

    def warn(self, text: str) -> None:
        self._renderer.warning(text)

    def play(self, item: Item) -> None:
        if isinstance(item, Batch):
            self._batch(item)
        elif isinstance(item, Sweep):
            self._show(self.assembler.take(item.now, item.heard))
        elif isinstance(item, Machine):
            self._machine = item
        elif isinstance(item, LiveBegin):
            self._machine = item.machine
            self.assembler = Stream(item.topology, lambda: self._machine)
            self._renderer.header(item.start)
        elif isinstance(item, Know):
            self.assembler.know(item.topology)
        elif isinstance(item, Armed):
            self.assembler.armed(item.now)
        elif isinstance(item, Pulse):
            self._seconds = item.seconds
            self._renderer.status(self._status())
        elif isinstance(item, Silence):
            self._renderer.silence(item.seconds, item.seen)
        else:
            self._show(self.assembler.rest())
            self._renderer.summary(replace(self._flows.summary(), seconds=self._seconds, events=self._events,
                                           lost=dict(self._lost), share=self._least))

    def _batch(self, batch: Batch) -> None:
        self.assembler.feed(batch)
        self._events += len(batch.events)
        self._share, self._least = batch.share, min(self._least, batch.share)
        for place, lost in batch.lost_by.items():
            self._lost[Place(place).name.lower()] += lost

    def _show(self, journeys: list[Journey]) -> None:
        shown, topology = self._shown, self.assembler.topology
        journeys = [owned(j, topology) for j in journeys]
        if any(j.end.result is not Result.DELIVERED for j in journeys):
            journeys = explain(journeys, topology, delivered=False)
        for journey, branches in families(journeys):
            problem = self._problems.of(journey)
            if (shown.drops and not any(j.end.result is Result.DROPPED for j in (journey, *branches))) \
                    or (shown.tcp_problems and not problem) or (shown.chosen and not shown.chosen(journey)):
                continue
            if self.enough:
                return
            if journey.end.reason == "NETFILTER_DROP" and journey.end.rule is None:
                self.unexplained.append(journey.packet)
            self.told += 1
            self._delivered += journey.end.result is Result.DELIVERED
            self._dropped += journey.end.result is Result.DROPPED
            for one in (journey, *branches):
                self._flows.add(one)
            self._renderer.journey(replace(journey, problem=problem) if problem else journey, branches)

    def _status(self) -> LiveStatus:
        self._lately.append((self._seconds, self.told))
        since, before = self._lately[0]
        rate = (self.told - before) / max(self._seconds - since, 0.001)
        return LiveStatus(self._seconds, self.told, self._delivered, self._dropped, rate, dict(self._lost), self._share,
                          self._flows.talkers())
