"""The picture as a graph for Graphviz: `dnettrace topo --format dot | dot -Tsvg`."""

from __future__ import annotations

from collections.abc import Iterable

from tracer.model.picture import Picture
from tracer.render import topo_words as words
from tracer.render.alphabet import Alphabet

_ALPHABET = Alphabet("utf-8")


def graph(picture: Picture) -> str:
    """A cluster for the host with its bridges, an edge for each veth pair."""
    host = [f"u{at} [label={_label(words.box_of_uplink(up))}];" for at, up in enumerate(picture.uplinks)]
    host += [f"b{at} [shape=octagon, label={_label(words.box_of_bridge(bridge))}];"
             for at, bridge in enumerate(picture.bridges)]
    outside = []
    for at, bridge in enumerate(picture.bridges):
        for number, port in enumerate(bridge.ports):
            outside.append(f"p{at}_{number} [label={_label(words.box_of_port(port))}];")
            outside.append(f"b{at} -- p{at}_{number} [label={_label([words.port(port)[-1]])}];")
    outside += [f"a{at} [style=dashed, label={_label((one.name, one.sentence))}];" for at, one in enumerate(picture.alone)]
    return "\n".join([
        "graph network {", "    rankdir=LR;", '    node [shape=box, fontname="sans-serif", fontsize=11];',
        '    edge [fontname="sans-serif", fontsize=9];', "    subgraph cluster_host {", '        label="host";',
        *(f"        {line}" for line in host), "    }", *(f"    {line}" for line in outside), "}", ""])


def _label(texts: Iterable[str]) -> str:
    """A quoted string of the DOT language: names come from outside."""
    safe = (_ALPHABET.show(text).replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return '"' + "\\n".join(safe) + '"'
