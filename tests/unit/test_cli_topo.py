"""`dnettrace topo` in process: what it takes, from a trace file, without root, bcc or pyroute2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_dependencies import CHECKOUT
from tests.unit.test_replay import BLOCKED
from tests.unit.trace import items, write
from tracer.cli.main import main
from tracer.errors import ExitStatus


@pytest.fixture
def trace(tmp_path: Path) -> str:
    return str(write(tmp_path / "run.pcapng", items("one_bridge")))


def test_a_recording_shows_its_network(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topo", trace]) == ExitStatus.OK
    out = capsys.readouterr().out
    assert "docker0" in out
    assert "172.17.0.2" in out
    assert "Not checked: the rules, which a recording does not hold" in out
    assert main(["topo", trace, "--format", "json"]) == ExitStatus.OK
    row = json.loads(capsys.readouterr().out)
    assert (row["source"], {bridge["name"] for bridge in row["bridges"]}) == (trace, {"docker0", "br-6c6162776562"})


@pytest.mark.parametrize("table", ["bridges", "links", "routes", "neighbors"])
def test_tables_of_a_recording(table: str, trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topo", table, trace]) == ExitStatus.OK
    assert "by hand: " in capsys.readouterr().out
    assert main(["topo", table, trace, "--format", "json"]) == ExitStatus.OK
    assert json.loads(capsys.readouterr().out.splitlines()[0])["type"] == "table"


def test_a_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topo", "sample:ping", "--container", "c1"]) == ExitStatus.OK
    assert "published" not in capsys.readouterr().out  # by c2


@pytest.mark.parametrize("form", ["mermaid", "dot", "svg", "html"])
def test_to_a_file(form: str, trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / f"network.{form}"
    arguments = ["topo", trace, "--format", form, "-o", str(target)]
    assert main(arguments) == ExitStatus.OK
    assert "docker0" in target.read_text()
    assert main(arguments) == ExitStatus.ERROR
    assert "exists: choose another name, or add --force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == ExitStatus.OK


def test_text_to_a_file_is_as_to_a_pipe(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "network.txt"
    main(["topo", trace, "-o", str(target)])
    main(["topo", trace])
    assert target.read_text() == capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    (["one", "two"], "'one' and 'two' are one word too many"),
    (["--for", "1.2.3.4"], "--for is for `dnettrace topo routes`."),
    (["bridges", "--from", "c1"], "--from is for `dnettrace topo routes`."),
    (["links", "--path", "c1:c2"], "--path is for `dnettrace topo` and `dnettrace topo rules`: leave out links."),
    (["--path", "c1:c2", "--container", "c1"], "--path takes neither --network nor --container: it names both ends."),
    (["--path", "c1:c2", "--format", "svg"], "--path has no svg: choose text or json."),
    (["-v"], "-v is for `dnettrace topo --path A:B`."),
    (["sample:ping", "--path", "c1:c2"], "sample:ping holds no rules but those that its packets met"),
    (["routes", "--format", "svg"], "Tables have no svg: choose text or json, or leave out routes."),
    (["rules", "--container", "c1"], "rules takes neither --network nor --container: --path chooses which."),
    (["nowhere.pcapng"], "nowhere.pcapng cannot be read: No such file or directory."),
    (["sample:ping", "--container", "nix"], 'No container or namespace in sample:ping is called "nix": there are c1, c2'),
    (["sample:ping", "--network", "nix"], 'No network in sample:ping is called "nix": there are'),
    (["rules", "sample:ping"], "sample:ping holds no rules but those that its packets met"),
    (["routes", "sample:ping", "--for", "x"], '"x" is no IP address'),
])
def test_what_it_does_not_take(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topo", *arguments]) == ExitStatus.ERROR
    out, err = capsys.readouterr()
    assert not out
    assert words in err
    assert err.count("\n") == 1


def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["topo"]) == ExitStatus.ERROR
    assert "needs root (CAP_SYS_ADMIN): run it with sudo, or give a FILE." in capsys.readouterr().err


def test_a_recording_needs_neither_bcc_nor_pyroute2() -> None:
    code = (f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r}))\nfrom tracer.cli.main import main\n"
            "for arguments in (['sample:ping'], ['sample:ping', '--format', 'html'], ['routes', 'sample:ping']):\n"
            "    assert main(['topo', *arguments]) == 0")
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
