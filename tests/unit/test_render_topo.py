"""The picture and the tables in each format: laid out for a terminal, and whole in the others whatever names hold."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len

from tests.unit.topo import draw, lines, network, port_of, relinked, source, table_lines
from tracer.map.picture import ALL, Choice
from tracer.model.picture import Picture
from tracer.model.topology import Topology
from tracer.render.topo_dot import graph
from tracer.render.topo_html import page
from tracer.render.topo_json import write_picture, write_tables
from tracer.render.topo_mermaid import flowchart
from tracer.render.topo_svg import svg

TABLES = ("bridges", "links", "routes", "neighbors", "rules")
EVIL = '</script><script>alert(1)</script>"&\x1b[31m\u202e\\];%%'
SVG = "{http://www.w3.org/2000/svg}"


def hostile() -> Topology:
    """Names that hold what each format might take for its own."""
    whole = network().topology
    inode = next(n.netns for n in whole.namespaces.values() if whole.node(n.netns) == "c1")
    containers = tuple(replace(c, name=EVIL) if c.name in ("c1", "c5") else c for c in whole.containers)
    networks = tuple(replace(n, name=EVIL) if n.name == "bridge" else n for n in whole.networks)
    topology = replace(whole, containers=containers, networks=networks, names={**whole.names, inode: EVIL})
    return relinked("host", port_of("c2").name, topology, name=EVIL[:15], up=False)


def html(picture: Picture, topology: Topology | None = None) -> str:
    return page(picture, source(topology).every_table(ALL))


# a terminal -------------------------------------------------------------------------------------------------------------


def test_three_containers_in_80_columns() -> None:
    picture = draw(Choice("bridge"))
    web = draw(Choice("web"))
    shown = lines(replace(picture, bridges=(*picture.bridges, *web.bridges)))
    at = shown.index("3: docker0  Docker network bridge")
    assert re.fullmatch(r"  NIC to the host  172\.17\.0\.1/16 fd00:17::1/64  [0-9a-f:]{17}  MTU 1500", shown[at + 1])
    assert shown[at + 2] == "  switch to ports  2 ports, 2 MACs learned"
    assert re.fullmatch(r"  ├ c1       172\.17\.0\.2  02:42:ac:11:00:02  \d+: eth0 ⇄ \d+: veth[0-9a-f]{7}", shown[at + 3])
    assert shown[at + 7].strip() == "published: host's 8080 → 80/tcp"
    assert shown[-1] == "No finding."
    assert all(cell_len(line) <= 80 for line in shown)


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    shown = lines(draw(), width)
    assert max(map(cell_len, shown)) <= width
    assert {"c1", "c10"} <= {word for line in shown for word in line.split()}
    for name in TABLES[:4]:
        assert max(map(cell_len, table_lines(source().tables(name, ALL, None, None, None), width))) <= max(width, 80), name


def test_findings_come_last_with_a_mend_that_can_be_copied() -> None:
    topology = relinked("host", "docker0", up=False)
    shown = lines(draw(topology=topology))
    assert shown[-1] == "1 finding."
    assert "  mend:  ip link set docker0 up" in shown
    assert any("docker0  Docker network bridge  DOWN" in line for line in shown)


def test_a_pipe_gets_one_line_a_row() -> None:
    shown = table_lines(source().tables("links", ALL, None, None, None), None)
    assert sum("veth" in line and "⇄" in line for line in shown) == 6


def test_a_terminal_gets_no_escape_sequence_of_others() -> None:
    text = "\n".join(lines(draw(topology=hostile())))
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert r"\x1b[31m" in text


# other formats ----------------------------------------------------------------------------------------------------------


def parsed_json(picture: Picture) -> dict[str, Any]:
    stream = io.StringIO()
    write_picture(picture, stream)
    row: dict[str, Any] = json.loads(stream.getvalue())
    return row


def test_json() -> None:
    row = parsed_json(draw())
    assert (row["type"], row["schema"], row["source"]) == ("topology", 1, None)
    docker0 = row["bridges"][0]
    assert (docker0["name"], docker0["roles"], docker0["network"]["name"]) == ("docker0", ["switch", "nic"], "bridge")
    assert docker0["ports"][0]["peer"]["containers"] == ["c1"]
    assert docker0["ports"][1]["peer"]["published"][0]["host_port"] == 8080
    assert {one["kind"] for one in row["alone"]} == {"host", "none", "macvlan", "stopped"}
    stream = io.StringIO()
    write_tables(source().tables("bridges", ALL, None, None, None), stream)
    tables = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [table["name"] for table in tables] == ["bridges", "ports", "fdb"]
    assert all(len(row["cells"]) == len(table["columns"]) for table in tables for row in table["rows"])


@pytest.mark.parametrize("topology", [None, hostile()], ids=["plain", "hostile"])
def test_svg_is_xml_with_a_line_for_each_pair(topology: Topology | None) -> None:
    root = ElementTree.fromstring(svg(draw(topology=topology)).encode())
    assert len(root.findall(f".//{SVG}circle")) == 7
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert {"c2", "3: docker0", "c3 + c4"} <= set(texts)
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    assert all(0 <= float(text.attrib["x"]) <= width and 0 <= float(text.attrib["y"]) <= height
               for text in root.iter(f"{SVG}text"))
    assert not list(root.iter(f"{SVG}script"))


class Page(HTMLParser):
    """What a browser would find of this kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("topology", [None, hostile()], ids=["plain", "hostile"])
def test_html_is_one_page_that_needs_nothing_from_elsewhere(topology: Topology | None) -> None:
    text = html(draw(topology=topology), topology)
    found = Page(text)
    assert not found.open
    assert found.tags.count("script") == 1
    assert not found.links
    assert "alert(1)</script>" not in text
    assert "url(" not in text
    assert {"svg", "input", "table"} <= set(found.tags)
    assert "prefers-color-scheme: dark" in text


def test_html_allows_its_own_style_and_script_only() -> None:
    import hashlib
    from base64 import b64encode
    text = html(draw())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    for tag in ("style", "script"):
        body = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert body
        assert f"{tag}-src 'sha256-{b64encode(hashlib.sha256(body[1].encode()).digest()).decode()}'" in policy[1]
    assert policy[1].startswith("default-src 'none'")


def test_mermaid() -> None:
    text = flowchart(draw())
    assert text.startswith("flowchart LR\n")
    assert re.search(r'b0 ---\|"\d+: eth0 ⇄ \d+: veth\w+"\| p0_0\["c1<br/>172\.17\.0\.2  ', text)
    evil = flowchart(draw(topology=hostile()))
    assert "<script" not in evil
    assert "\x1b" not in evil
    assert all(line.count('"') in (0, 2, 4) for line in evil.splitlines())


def test_dot() -> None:
    text = graph(draw())
    assert text.startswith("graph network {")
    assert text.count(" -- ") == 7
    evil = graph(draw(topology=hostile()))
    assert "\x1b" not in evil
    assert all(len(re.findall(r'(?<!\\)(?:\\\\)*"', line)) % 2 == 0 for line in evil.splitlines())
