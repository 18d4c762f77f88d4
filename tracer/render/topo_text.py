"""The picture of the network for a person at a terminal: a block a bridge, a line a container, what will bite at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from tracer.model.picture import Alone, Bridge, Picture, Port, Uplink
from tracer.model.topology import Link
from tracer.render import topo_words as words, words as said
from tracer.render.page import Page
from tracer.render.styles import DIM, NAME, REWRITE, WARNING

_NIC, _SWITCH = "magenta", "cyan"  # as hops have it
_BAD = "bold red"
_GAP = "  "
Cells = tuple[tuple[str, str], ...]  # text and style


class TopoText(Page):
    def show(self, picture: Picture) -> None:
        self._facts(picture)
        for uplink in picture.uplinks:
            self._uplink(uplink)
        rows = [[self._cells(port) for port in bridge.ports] for bridge in picture.bridges]
        widths = [max((cell_len(self._alphabet.show(row[at][0])) for block in rows for row in block), default=0)
                  for at in range(len(words.PORT_COLUMNS))]
        for bridge, block in zip(picture.bridges, rows, strict=True):
            self._bridge(bridge, block, widths)
        if picture.alone:
            self._print([Text()])
            self._paragraph(self._text("not on a bridge", NAME))
        room = max((cell_len(one.name) for one in picture.alone), default=0)
        for one in picture.alone:
            self._alone(one, min(room, 20))
        self.findings(picture)

    def findings(self, picture: Picture) -> None:
        self._print([Text()])
        for found in picture.findings:
            self._paragraph(self._text(f"! {found.sentence}", WARNING), rest=2)
            self._causes([*(("seen:", one) for one in found.evidence), *([("mend:", found.mend)] if found.mend else [])])
        count = len(picture.findings)
        unchecked = f" Not checked: {'; '.join(picture.unchecked)}." if picture.unchecked else ""
        self._paragraph(self._text(said.count(count, "finding") + "." if count else "No finding.",
                                   WARNING if count else "bold green") + self._text(unchecked, DIM), rest=0)

    def _facts(self, picture: Picture) -> None:
        self._paragraph(self._text("host", NAME) + self._text(f"  {picture.source}" if picture.source else "", DIM))
        room = max((len(fact.name) for fact in picture.facts), default=0)
        for fact in picture.facts:
            self._labelled(self._text(f"{fact.name:{room}}  ", DIM), self._text(fact.value, "" if fact.good else WARNING))

    def _uplink(self, uplink: Uplink) -> None:
        link = uplink.link
        line = self._text(words.device(link), NAME) + self._text(_GAP + words.addresses(link)) + self._text(
            _GAP + words.way_out(uplink), DIM) + self._state(link)
        self._paragraph(line, 2, 6)

    def _state(self, link: Link) -> Text:
        state = words.state(link)
        return self._text(_GAP + state, _BAD) if state else Text()

    def _bridge(self, bridge: Bridge, rows: Sequence[Cells], widths: Sequence[int]) -> None:
        self._print([Text()])
        self._paragraph(self._text(words.device(bridge.link), NAME) + self._text(_GAP + words.bridge_of(bridge))
                        + self._state(bridge.link))
        nic, switch = words.roles(bridge)
        for label, text, style in ((nic, words.as_nic(bridge), _NIC), (switch, words.as_switch(bridge), _SWITCH)):
            self._labelled(self._text(f"{label:{len(switch)}}  ", style), self._text(text))
        for at, (port, row) in enumerate(zip(bridge.ports, rows, strict=True)):
            last = at == len(rows) - 1 and not bridge.hidden
            self._print(self._port(port, row, widths, "└" if last else "├", " " if last else "│"))
        if bridge.hidden:
            self._paragraph(self._text(f"└ and {said.count(bridge.hidden, 'other port')}", DIM), 2)

    def _cells(self, port: Port) -> Cells:
        return tuple(zip(words.port(port), (NAME, "", "", DIM), strict=True))

    def _port(self, port: Port, row: Cells, widths: Sequence[int], branch: str, stem: str) -> Iterator[Text]:
        """In one line if it fits, else the pair of devices in a line of its own."""
        line = self._text(f"  {branch} ", DIM)
        whole = 4 + sum(widths) + len(_GAP) * (len(widths) - 1)
        narrow = self._columns.width is not None and whole > self._columns.width
        for (text, style), width in zip(row[:-1] if narrow else row, widths, strict=False):
            cell = self._text(text, style)
            line.append_text(cell).append(" " * (width - cell.cell_len) + _GAP)
        line.append_text(self._state_of(port))
        line.rstrip()
        yield line
        margin = self._text(f"  {stem} ", DIM)
        indent = 2 if narrow else widths[0] + len(_GAP)
        below = [self._text(text, REWRITE if is_port else DIM) for text, is_port in words.below(port)]
        if narrow:
            pair = self._text(row[-1][0], DIM)
            room = (self._columns.width or 0) - 4 - indent
            if below and pair.cell_len + len(_GAP) + below[0].cell_len <= room:
                pair = pair + self._text(_GAP) + below.pop(0)
            below.insert(0, pair)
        for one in below:
            for part in self._columns.fold(one, None if self._columns.width is None else self._columns.width - 4 - indent):
                yield margin + self._text(" " * indent) + part

    def _state_of(self, port: Port) -> Text:
        found = words.port_state(port)
        return self._text(found, _BAD) if found else Text()

    def _alone(self, one: Alone, room: int) -> None:
        self._labelled(self._text(f"{one.name:{room}}{_GAP}", NAME), self._text(one.sentence))
        for link in one.links if one.kind not in ("routed", "unbridged") else ():
            self._paragraph(self._text("  ".join(filter(None, (words.device(link), words.addresses(link), link.mac or "",
                                                                words.state(link))))), room + 4, room + 6)


