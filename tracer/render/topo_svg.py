"""The picture drawn: the host with its bridges, veth pairs across its border, containers outside of it.

    ┌ way out ┐     ┌ host ──────────────────────────────┐
    │         ├─────┤ eth0   L3   ┌ docker0 ┐  ports     │      ┌ c1 ┐
    └─────────┘     │        ├────┤ NIC     │            │      │    │
                    │        │    │ switch  ├─ veth… ────┼──────┤eth0│
                    └────────────────────────────────────┘      └────┘
Sizes are in pixels. Text is monospaced, so that its width is known without a browser.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from string import Template

from rich.cells import cell_len

from tracer.model.picture import Alone, Bridge, Picture, Port, Uplink
from tracer.render import topo_words as words
from tracer.render.alphabet import Alphabet

CHAR, LINE, PAD = 6.7, 15, 10  # width of a character and height of a line at 11 px; inside boxes
_ALPHABET = Alphabet("utf-8")

# Colours by role: on a light and on a dark background. Without CSS variables, which viewers other than browsers lack.
_ROLES = ("bg", "fg", "dim", "line", "host", "nic", "switch", "bad", "port")
_LIGHT = ("#ffffff", "#1b1f24", "#57606a", "#8c959f", "#f6f8fa", "#8250df", "#0969da", "#cf222e", "#9a6700")
_DARK = ("#0d1117", "#e6edf3", "#9198a1", "#656c76", "#151b23", "#bc8cff", "#58a6ff", "#ff7b72", "#d29922")
_SHAPES = """.topo { font: 11px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace }
.topo text { white-space: pre } .topo .name, .topo text.bad { font-weight: bold } .topo path { fill: none }
.topo rect.alone, .topo path.bad { stroke-dasharray: 4 3 } .topo path.face { stroke-width: 3 }
"""
_COLOURS = Template(""".topo { background: $bg } .topo text { fill: $fg } .topo text.dim { fill: $dim }
.topo text.nic { fill: $nic } .topo text.switch { fill: $switch } .topo text.bad { fill: $bad }
.topo text.published { fill: $port } .topo rect { fill: $bg; stroke: $line } .topo rect.host { fill: $host }
.topo rect.nic { stroke: $nic } .topo path { stroke: $line } .topo path.veth { stroke: $switch }
.topo path.l3 { stroke: $nic } .topo path.bad { stroke: $bad } .topo circle { fill: $switch }
""")
STYLE = (f"{_SHAPES}{_COLOURS.substitute(dict(zip(_ROLES, _LIGHT, strict=True)))}"
         f"@media (prefers-color-scheme: dark) {{\n{_COLOURS.substitute(dict(zip(_ROLES, _DARK, strict=True)))}}}\n")


def svg(picture: Picture, *, inline: bool = False) -> str:
    """A file of its own, or, `inline`, an element of an HTML page that has STYLE."""
    canvas = _Canvas(picture)
    body = list(canvas.draw())
    head = f'<svg class="topo" viewBox="0 0 {canvas.width:.0f} {canvas.height:.0f}" width="{canvas.width:.0f}" ' \
           f'height="{canvas.height:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">'
    title = "<title>The network: bridges, ports, containers</title>"
    style = "" if inline else f"<style>{STYLE}</style>"
    declaration = "" if inline else '<?xml version="1.0" encoding="UTF-8"?>'
    return "\n".join([declaration, head, title, style, *body, "</svg>", ""]).lstrip()


def safe(text: str) -> str:
    """Names come from outside: markup is escaped, and control characters, which XML has no place for, are spelled out."""
    return escape(_ALPHABET.show(text))


class _Canvas:
    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        ups = [_uplink_lines(up) for up in picture.uplinks]
        bridges = [_bridge_lines(bridge) for bridge in picture.bridges]
        ports = [port for bridge in picture.bridges for port in bridge.ports]
        self.left = 20.0  # of the host
        self.up_wide = _widest([line for lines in ups for line in lines], 120)
        self.bus = self.left + self.up_wide + 50  # where routing and iptables stand
        self.bridge_at = self.bus + 100
        self.bridge_wide = _widest([line for lines in bridges for line in lines], 160)
        self.port_at = self.bridge_at + self.bridge_wide
        self.border = self.port_at + _widest([words.device(port.link) for port in ports], 60) + 34
        self.guest_at = self.border + 90
        self.guest_wide = _widest([line for port in ports for line in words.box_of_port(port)], 140)
        self.width = self.guest_at + self.guest_wide + 20
        self.height = 0.0

    def draw(self) -> Iterator[str]:
        body: list[str] = []
        top = 52.0
        y = top
        for up in self.picture.uplinks:
            body += self._uplink(up, y)
            y += 20 + LINE * len(_uplink_lines(up)) + PAD
        uplinks_end, y = y, top
        for bridge in self.picture.bridges:
            high = max(100.0, sum(map(_high, bridge.ports)) + 4)
            body += self._bridge(bridge, y, high)
            y += high + 22
        bottom = max(uplinks_end, y, top + 60)
        yield f'<g class="item" data-name="host"><rect class="host" rx="8" x="{self.left - 10:.0f}" y="10" ' \
              f'width="{self.border - self.left + 10:.0f}" height="{bottom - 4:.0f}"/>'
        yield _text(self.left, 30, "host", "name") + "</g>"
        yield _text(self.border + 12, 30, "containers and namespaces", "dim")
        yield f'<rect class="nic" x="{self.bus:.0f}" y="{top:.0f}" width="40" height="{bottom - top - 10:.0f}"/>'
        middle = (top + bottom - 10) / 2
        yield f'<text class="nic" transform="rotate(-90 {self.bus + 24:.0f} {middle:.0f})" x="{self.bus + 24:.0f}" ' \
              f'y="{middle:.0f}" text-anchor="middle">{"routing, iptables" if bottom - top > 150 else "L3"}</text>'
        yield from body
        y = bottom + 26
        for one in self.picture.alone:
            lines = _alone_lines(one, self.width - 60)
            yield from _box(20, y, self.width - 40, lines, "alone", one.name)
            y += LINE * len(lines) + PAD * 2 + 8
        self.height = y + 6

    def _uplink(self, up: Uplink, y: float) -> Iterator[str]:
        lines = _uplink_lines(up)
        yield from _box(self.left, y, self.up_wide, lines, "", up.link.name)
        middle = y + 20
        yield f'<path class="l3" d="M{self.left + self.up_wide:.0f} {middle:.0f}H{self.bus:.0f}"/>'
        yield f'<path d="M{self.left:.0f} {middle:.0f}H0"/>'

    def _bridge(self, bridge: Bridge, y: float, high: float) -> Iterator[str]:
        """Its NIC's face to the left, where the host's L3 is; its switch's face to the ports."""
        name, whose, nic, nic_mac, switch = _bridge_lines(bridge)
        x, wide = self.bridge_at, self.bridge_wide
        yield f'<g class="item" data-name="{safe(" ".join((bridge.link.name, whose)))}">'
        yield f'<rect rx="5" x="{x:.0f}" y="{y:.0f}" width="{wide:.0f}" height="{high:.0f}"/>'
        faces = f"{y + 8:.0f}V{y + high - 8:.0f}"
        yield f'<path class="l3 face" d="M{x:.0f} {faces}"/><path class="veth face" d="M{x + wide:.0f} {faces}"/>'
        yield _text(x + PAD, y + 18, name, "name") + _text(x + PAD, y + 18 + LINE, whose, "dim")
        yield _text(x + PAD, y + 56, nic, "nic") + _text(x + PAD, y + 56 + LINE, nic_mac, "nic")
        yield _text(x + PAD, y + 90, switch, "switch")
        if state := words.state(bridge.link):
            yield _text(x + wide - PAD - CHAR * len(state), y + 18, state, "bad")
        yield f'<path class="l3" d="M{self.bus + 40:.0f} {y + 52:.0f}H{x:.0f}"/></g>'
        yield _text(self.bus + 48, y + 46, "NIC", "nic")
        for port in bridge.ports:
            yield from self._port(port, y + 4)
            y += _high(port)

    def _port(self, port: Port, y: float) -> Iterator[str]:
        lines = words.box_of_port(port)
        middle = y + 22
        bad = words.port_state(port)
        who = words.port(port)[0]
        yield f'<g class="item" data-name="{safe(" ".join((*lines, port.link.name)))}">'
        end = self.guest_at if port.guest else self.border - 20
        yield f'<path class="{"bad" if bad else "veth"}" d="M{self.port_at:.0f} {middle:.0f}H{end:.0f}"/>'
        yield f'<circle cx="{self.port_at:.0f}" cy="{middle:.0f}" r="4"/>'
        yield _text(self.port_at + 10, middle - 5, words.device(port.link), "")
        if bad:
            yield _text(self.port_at + 10, middle + 13, bad, "bad")
        if port.guest:
            inner = words.pair_end(port.guest)
            yield _text(self.guest_at - 8 - CHAR * len(inner), middle - 5, inner, "")
            yield from _box(self.guest_at, y, self.guest_wide, lines, "", who, group=False)
        else:
            yield _text(self.port_at + 10, middle + 13, who, "dim")
        yield "</g>"


def _text(x: float, y: float, text: str, style: str) -> str:
    look = f' class="{style}"' if style else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{look}>{safe(text)}</text>'


def _box(x: float, y: float, wide: float, lines: Sequence[str], style: str, name: str, group: bool = True) -> Iterator[str]:
    """A box whose first line is its name."""
    if group:
        yield f'<g class="item" data-name="{safe(" ".join((name, *lines)))}">'
    look = f'class="{style}" ' if style else ""
    yield f'<rect {look}rx="5" x="{x:.0f}" y="{y:.0f}" width="{wide:.0f}" height="{LINE * len(lines) + PAD:.0f}"/>'
    for at, line in enumerate(lines):
        style_of_line = "name" if not at else "published" if line.startswith("published") else "dim"
        yield _text(x + PAD, y + 15 + LINE * at, line, style_of_line)
    if group:
        yield "</g>"


def _widest(lines: Sequence[str], least: float) -> float:
    return max([least, *(CHAR * cell_len(_ALPHABET.show(line)) + 2 * PAD for line in lines)])


def _uplink_lines(up: Uplink) -> list[str]:
    gateways = [f"default via {gateway}" for gateway in up.gateways]
    state = words.state(up.link)
    ends = [f"other end: {words.pair_end(up.guest)} of {words.who(up.guest)}"] if up.guest else []
    name = words.device(up.link) + (f"  {state}" if state else "")
    return [name, *words.addresses(up.link).split(" "), *gateways, *ends]


def _bridge_lines(bridge: Bridge) -> tuple[str, str, str, str, str]:
    link = bridge.link
    return (words.device(link), words.bridge_of(bridge), f"NIC    {words.addresses(link)}",
            f"       {link.mac}  MTU {link.mtu}", f"switch {words.as_switch(bridge)}")


def _high(port: Port) -> float:
    """From this port to the next."""
    return LINE * len(words.box_of_port(port)) + PAD + 10


def _alone_lines(one: Alone, room: float) -> list[str]:
    """The sentence in lines that fit."""
    lines, line = [one.name], ""
    for word in one.sentence.split(" "):
        if line and CHAR * (len(line) + 1 + len(word)) > room:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    devices = [f"{words.device(link)}  {words.addresses(link)}  {link.mac}" for link in one.links]
    return [*lines, line, *devices]
