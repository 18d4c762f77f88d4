"""The picture as a graph for Graphviz: `dnettrace topo --format dot | dot -Tsvg`."""

from __future__ import annotations

from tracer.model.picture import Picture
from tracer.render import topo_words as words
from tracer.render.alphabet import Alphabet

_ALPHABET = Alphabet("utf-8")


def graph(picture: Picture) -> str:
    """A cluster for the host with its bridges, an edge for each veth pair."""
    lines = ["graph network {", "    rankdir=LR;", '    node [shape=box, fontname="sans-serif", fontsize=11];',
             '    edge [fontname="sans-serif", fontsize=9];', "    subgraph cluster_host {", '        label="host";']
    lines += [f"        u{at} [label={_label(words.device(up.link), words.addresses(up.link), words.way_out(up))}];"
              for at, up in enumerate(picture.uplinks)]
    for at, bridge in enumerate(picture.bridges):
        text = _label(words.device(bridge.link), words.bridge_of(bridge), f"NIC: {words.as_nic(bridge)}",
                      f"switch: {words.as_switch(bridge)}")
        lines.append(f"        b{at} [shape=octagon, label={text}];")
    lines.append("    }")
    for at, bridge in enumerate(picture.bridges):
        for number, port in enumerate(bridge.ports):
            who, address, mac, pair = words.port(port)
            below = [text for text, _ in words.below(port)]
            lines.append(f"    p{at}_{number} [label={_label(*filter(None, (who, address, mac, *below)))}];")
            lines.append(f"    b{at} -- p{at}_{number} [label={_label(pair)}];")
    lines += [f"    a{at} [style=dashed, label={_label(one.name, one.sentence)}];" for at, one in enumerate(picture.alone)]
    return "\n".join([*lines, "}"]) + "\n"


def _label(*texts: str) -> str:
    """A quoted string of the DOT language: names come from outside."""
    safe = (_ALPHABET.show(text).replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return '"' + "\\n".join(safe) + '"'
