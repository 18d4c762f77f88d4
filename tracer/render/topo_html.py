"""The picture and the tables as one page: to be searched, light or dark as its reader has it, with nothing from elsewhere.

What stands behind # in its address is searched for: network.html#c1. Its Content-Security-Policy allows only the style and
the script that are in the page, and nothing from a network.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator, Sequence

from tracer.model.journey import Cause
from tracer.model.picture import Picture, Row, Table
from tracer.render.topo_svg import STYLE as SVG_STYLE, safe, svg
from tracer.render.words import count

_STYLE = """
:root { color-scheme: light dark; --bg:#fff; --fg:#1b1f24; --dim:#57606a; --line:#d0d7de; --bad:#cf222e; --good:#1a7f37;
  --mark:#fff8c5 }
@media (prefers-color-scheme: dark) { :root { --bg:#0d1117; --fg:#e6edf3; --dim:#9198a1; --line:#30363d; --bad:#ff7b72;
  --good:#3fb950; --mark:#3a2d00 } }
body { background:var(--bg); color:var(--fg); font:14px/1.5 system-ui,sans-serif; margin:0 auto; padding:1rem 1.5rem }
h1 { font-size:1.4rem; margin:0 } h2 { font-size:1.1rem; margin:2rem 0 .3rem } p { margin:.2rem 0; max-width:60rem }
.dim { color:var(--dim) } code, td { font:12px/1.5 ui-monospace,Menlo,Consolas,monospace }
header { display:flex; gap:1rem; align-items:baseline; flex-wrap:wrap }
input { font:inherit; padding:.3rem .6rem; width:20rem; max-width:100%; border:1px solid var(--line); border-radius:6px;
  background:var(--bg); color:var(--fg) }
.scroll { overflow-x:auto } table { border-collapse:collapse; margin:.5rem 0 } th { text-align:left; color:var(--dim);
  font-weight:normal } th, td { padding:.15rem .9rem .15rem 0; border-bottom:1px solid var(--line); vertical-align:top;
  white-space:pre-wrap } tr.bad td { color:var(--bad) } tr.it td { color:var(--good); font-weight:bold }
.finding { border-left:4px solid var(--bad); padding:.3rem 0 .3rem .8rem; margin:.6rem 0 } .good { color:var(--good) }
.found > rect:first-of-type { stroke-width:2.5 } .found td { background:var(--mark) }
.away { opacity:.35 } tr.away { display:none }
"""
_SCRIPT = """
const box = document.getElementById('search'), told = document.getElementById('told');
const items = [...document.querySelectorAll('.item')].map(one => [one, (one.dataset.name || one.textContent).toLowerCase()]);
const look = () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let found = 0;
  for (const [one, text] of items) {
    const fits = words.length > 0 && words.every(word => text.includes(word));
    one.classList.toggle('found', fits);
    one.classList.toggle('away', words.length > 0 && !fits && one.dataset.name !== 'host');
    found += fits;
  }
  told.textContent = words.length ? found + ' found' : '';
};
const linked = () => { try { box.value = decodeURIComponent(location.hash.slice(1)); } catch { box.value = ''; } look(); };
box.addEventListener('input', look);
window.addEventListener('hashchange', linked);
linked();
document.addEventListener('keydown', event => {
  if (event.key === '/' && document.activeElement !== box) { event.preventDefault(); box.focus(); }
  if (event.key === 'Escape') { box.value = ''; look(); }
});
"""


def page(picture: Picture, tables: Sequence[Table]) -> str:
    style = _STYLE + SVG_STYLE
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(_SCRIPT)}'"
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', "<title>dnettrace topo</title>",
        f"<style>{style}</style>", "</head>", "<body>",
        "<header><h1>The network</h1>",
        '<input id="search" type="search" placeholder="name, address, MAC, rule  ( / )" aria-label="search">'
        '<span id="told" class="dim" role="status"></span></header>',
        *_facts(picture), *_findings(picture), '<div class="scroll">', svg(picture, inline=True), "</div>",
        *(line for table in tables for line in _table(table)), f"<script>{_SCRIPT}</script>", "</body>", "</html>", ""])


def _hash(text: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _facts(picture: Picture) -> Iterator[str]:
    if picture.source:
        yield f'<p class="dim">as {safe(picture.source)} holds it</p>'
    yield '<p class="dim">' + " · ".join(f"{safe(fact.name)}: {safe(fact.value)}" for fact in picture.facts) + "</p>"


def _findings(picture: Picture) -> Iterator[str]:
    if picture.findings:
        yield f"<h2>{count(len(picture.findings), 'finding')}</h2>"
    else:
        yield '<p class="good">No finding.</p>'
    for found in picture.findings:
        yield from _finding(found)
    if picture.unchecked:
        yield f'<p class="dim">Not checked: {safe("; ".join(picture.unchecked))}.</p>'


def _finding(found: Cause) -> Iterator[str]:
    yield f'<div class="finding item"><p>{safe(found.sentence)}</p>'
    yield from (f'<p class="dim">seen: <code>{safe(one)}</code></p>' for one in found.evidence)
    if found.mend:
        yield f"<p>mend: <code>{safe(found.mend)}</code></p>"
    yield "</div>"


def _table(table: Table) -> Iterator[str]:
    yield f"<h2>{safe(table.title)}</h2><p>{safe(table.meaning)}</p>"
    yield f'<p class="dim">by hand: <code>{safe(table.command)}</code></p>'
    if table.rows:
        heads = "".join(f"<th>{safe(name)}</th>" for name in (*table.columns, *_note_head(table)))
        yield f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>'
        yield from (_row(row, bool(_note_head(table))) for row in table.rows)
        yield "</tbody></table></div>"
    yield from (f"<p>{safe(note)}</p>" for note in table.notes)


def _note_head(table: Table) -> tuple[str, ...]:
    return ("",) if any(row.note for row in table.rows) else ()


def _row(row: Row, with_note: bool) -> str:
    style = {"!": " bad", ">": " it"}.get(row.mark, "")
    cells = "".join(f"<td>{safe(cell)}</td>" for cell in (*row.cells, *((row.note,) if with_note else ())))
    return f'<tr class="item{style}">{cells}</tr>'
