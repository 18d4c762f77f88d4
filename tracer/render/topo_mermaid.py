"""The picture as a flowchart that Markdown viewers draw (https://mermaid.js.org/syntax/flowchart.html)."""

from __future__ import annotations

from collections.abc import Iterable

from tracer.model.picture import Picture
from tracer.render import topo_words as words
from tracer.render.mermaid import escaped


def flowchart(picture: Picture) -> str:
    """A subgraph for the host with its bridges, an edge for each veth pair across the host's border."""
    lines = ["flowchart LR", '    subgraph host["host"]']
    lines += [f"        u{at}[{_quoted(words.box_of_uplink(up))}]" for at, up in enumerate(picture.uplinks)]
    lines += [f"        b{at}{{{{{_quoted(words.box_of_bridge(bridge))}}}}}" for at, bridge in enumerate(picture.bridges)]
    lines.append("    end")
    for at, bridge in enumerate(picture.bridges):
        for number, port in enumerate(bridge.ports):
            pair, box = _quoted([words.port(port)[-1]]), _quoted(words.box_of_port(port))
            lines.append(f"    b{at} ---|{pair}| p{at}_{number}[{box}]")
    lines += [f"    a{at}[{_quoted((one.name, one.sentence))}]" for at, one in enumerate(picture.alone)]
    return "\n".join(lines) + "\n"


def _quoted(texts: Iterable[str]) -> str:
    return '"' + "<br/>".join(map(escaped, texts)) + '"'
