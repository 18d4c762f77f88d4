"""`dnettrace replay` and `info`: the same bytes as live, without root, bcc, pyroute2 or Linux."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.unit.test_dependencies import CHECKOUT
from tests.unit.trace import every_kind, items, write
from tracer.cli.main import main
from tracer.cli.telling import Telling
from tracer.errors import ExitStatus
from tracer.model.run import Begin
from tracer.render.json_lines import JsonRenderer
from tracer.render.text import TextRenderer

BLOCKED = ("bcc", "pyroute2", "scapy", "tracer.kernel", "tracer.topology", "tracer.traffic")
RUNS = ["one_bridge", "gateway", "isolated", "outside", "arp", "one_bridge_v6", "fragments", "published", "itself",
        "nobody", "ttl", "probed", "probed_udp", "probed_nobody"]


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("name", RUNS)
def test_a_replay_shows_what_live_showed(name: str, verbose: bool, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "run.pcapng", items(name)))
    for option in "--json", "":
        stream = io.StringIO()
        live = Telling(JsonRenderer(stream) if option else TextRenderer(Console(file=stream)), verbose)
        for item in items(name):
            live.play(item)
        assert main(["replay", path, *filter(None, (option, "-v" if verbose else ""))]) == live.status
        assert capsys.readouterr().out == stream.getvalue()


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    main(["replay", *arguments, "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_part_of_the_journeys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "run.pcapng", items("isolated")))
    everything = [row for row in rows(capsys, path) if row["type"] == "journey"]
    assert [row["id"] for row in rows(capsys, path, "--journey", "1")[1:-1]] == [1]
    (dropped,) = rows(capsys, path, "--drops")[1:-1]
    assert dropped["kind"] == "request"
    for node in "c1", "host":
        assert [row["id"] for row in rows(capsys, path, "--container", node)[1:-1] if row["kind"] != "copy"] == [
            row["id"] for row in everything if row["kind"] != "copy" and any(hop["node"] == node for hop in row["hops"])]
    assert not rows(capsys, path, "--container", "c9")[1:-1]


def test_a_cut_file_is_shown_as_far_as_it_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "run.pcapng", items())
    path.write_bytes(path.read_bytes()[:-1000])
    found = rows(capsys, str(path))
    assert [row["type"] for row in found[-2:]] == ["warning", "summary"]
    assert f"{path} is not whole, and shown as far as it goes: it is cut at byte" in str(found[-2]["text"])
    assert [row["kind"] for row in found if row["type"] == "journey"].count("request") >= 1


def test_names_of_others_are_shown_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = items()[0]
    assert isinstance(begin, Begin)
    hostile = replace(begin, start=replace(begin.start, kernel="\x1b]0;x\x07", notes=("\x1b[31mred\ud800",)))
    path = str(write(tmp_path / "hostile\x1b[2J.pcapng", [hostile, *items()[1:-1]]))
    for arguments in ["replay", path], ["replay", path, "--json"], ["info", path]:
        main(arguments)
        assert "\x1b" not in "".join(capsys.readouterr())


def test_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(write(tmp_path / "run.pcapng", every_kind()))]) == ExitStatus.OK
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.replace("not observed", "unseen").splitlines())
    assert said["what"].startswith("dnettrace trace, format 2, by dnettrace 0.1.0, ")
    assert (said["run"], said["lost"], said["unseen"]) == (
        "icmp from c1 (172.17.0.2) to c2 (172.17.0.3), 3 sent",
        "3 events; under load down to 25.00% of the packets were followed, whole", "netfilter (no links)")
    assert (said["holds"], said["whole"]) == ("76 frames at 24 places", "yes")


@pytest.mark.parametrize("command", ["replay", "info"])
def test_no_trace(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.write_text("text")
    for path, words in (other, "is no pcapng file"), (tmp_path / "none", "cannot be read: No such file or directory."):
        assert main([command, str(path)]) == ExitStatus.ERROR
        out, err = capsys.readouterr()
        assert not out and words in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["replay", "info"])
def test_neither_root_nor_bcc_nor_pyroute2(command: str, tmp_path: Path) -> None:
    path = write(tmp_path / "run.pcapng", items())
    code = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
from tracer.cli.main import main
sys.exit(main([{command!r}, {str(path)!r}]))
"""
    powerless = ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []
    done = subprocess.run([*powerless, sys.executable, "-c", code], cwd=CHECKOUT, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "c1" in done.stdout


def test_a_flooded_packet_is_told_by_the_branch_that_a_socket_took(capsys: pytest.CaptureFixture[str]) -> None:
    """`ping host c2 --tcp 80` in the lab, whose bridge has no row for c2: a socket's packet has lost its device."""
    main(["replay", str(Path(__file__).parent / "traces/flooded_tcp.pcapng"), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ends = [(row["kind"], row["end"]["result"], row["end"]["node"]) for row in rows if row["type"] == "journey"]
    assert ends[:2] == [("request", "delivered", "c2"), ("copy", "dropped", "c1")]
