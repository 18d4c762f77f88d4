"""The picture as a flowchart that Markdown viewers draw (https://mermaid.js.org/syntax/flowchart.html)."""

from __future__ import annotations

from tracer.model.picture import Picture
from tracer.render import topo_words as words
from tracer.render.mermaid import escaped


def flowchart(picture: Picture) -> str:
    """A subgraph for the host with its bridges, an edge for each veth pair across the host's border."""
    lines = ["flowchart LR", '    subgraph host["host"]']
    lines += [f'        u{at}["{_lines(words.device(up.link), words.addresses(up.link), words.way_out(up))}"]'
              for at, up in enumerate(picture.uplinks)]
    for at, bridge in enumerate(picture.bridges):
        lines.append(f'        b{at}{{{{"{_lines(words.device(bridge.link), words.bridge_of(bridge))}<br/>'
                     f'{_lines(f"NIC: {words.as_nic(bridge)}", f"switch: {words.as_switch(bridge)}")}"}}}}')
    lines.append("    end")
    for at, bridge in enumerate(picture.bridges):
        for number, port in enumerate(bridge.ports):
            who, address, mac, pair = words.port(port)
            below = [text for text, _ in words.below(port)]
            lines.append(f'    p{at}_{number}["{_lines(*filter(None, (who, address, mac, *below)))}"]')
            lines.append(f'    b{at} ---|"{_lines(pair)}"| p{at}_{number}')
    lines += [f'    a{at}["{_lines(one.name, one.sentence)}"]' for at, one in enumerate(picture.alone)]
    return "\n".join(lines) + "\n"


def _lines(*texts: str) -> str:
    return "<br/>".join(map(escaped, texts))
