"""The HTML page in a real browser, without a network: it searches, and follows the reader's light or dark."""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.functional.engine import cache
from tests.unit.topo import draw, source
from tracer.map.picture import ALL
from tracer.render.topo_html import page

SECONDS = 60


@pytest.fixture(scope="module")
def browser() -> Path:
    program = cache() / "browser/usr/lib/chromium/chromium-headless-shell"
    if not program.exists():
        if "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
            pytest.skip("only Debian has a headless browser to unpack")
        missing("no browser: scripts/test unpacks one")
    return program


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "network.html"
    path.write_text(page(draw(), source().every_table(ALL)), encoding="utf-8")
    return path


def run(browser: Path, home: Path, *arguments: str) -> str:
    libraries = [*browser.parents[1].glob("*-linux-*"), *browser.parents[1].glob("*-linux-*/pulseaudio")]
    env = os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, libraries)), "HOME": str(home)}
    # no sandbox: root has none, and the page is our own
    done = subprocess.run([browser, "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--incognito", *arguments],
                          env=env, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert "Content Security Policy" not in done.stderr
    return done.stdout


def test_the_search(browser: Path, network: Path) -> None:
    dom = run(browser, network.parent, "--enable-logging=stderr", "--dump-dom", f"{network.as_uri()}#172.17.0.3%20C2")
    found = re.search(r'<span id="told"[^>]*>(\d+) found</span>', dom)
    assert found
    assert int(found[1]) >= 2  # in the drawing and in a table
    shapes = re.findall(r'<g class="(item[^"]*)" data-name="([^"]*)"', dom)
    assert [name.split(" ")[0] for style, name in shapes if "found" in style] == ["c2"]
    assert any(name.startswith("c1 ") and "away" in style for style, name in shapes)


@pytest.mark.parametrize(("scheme", "colour"), [("1", (255, 255, 255)), ("0", (13, 17, 23))], ids=["light", "dark"])
def test_light_and_dark(browser: Path, network: Path, tmp_path: Path, scheme: str, colour: tuple[int, int, int]) -> None:
    shot = tmp_path / "page.png"
    run(browser, tmp_path, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}",
        "--window-size=400,300", network.as_uri())
    assert corner(shot.read_bytes()) == colour


def corner(png: bytes) -> tuple[int, ...]:
    """The first pixel: whatever the row's filter, it stands as it is, since nothing is left of it or above."""
    data, at = b"", 8
    while at < len(png):
        size = int.from_bytes(png[at:at + 4], "big")
        data += png[at + 8:at + 8 + size] if png[at + 4:at + 8] == b"IDAT" else b""
        at += size + 12
    return tuple(zlib.decompress(data)[1:4])
