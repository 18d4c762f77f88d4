"""Recorded pings, replayed: real runs on a Docker engine, compared byte for byte with what they showed."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.functional.conftest import Dnettrace, Ping, pinging, program
from tests.functional.engine import Engine


@pytest.fixture
def ping(dnettrace: Dnettrace, engine: Engine) -> Ping:
    return pinging(dnettrace, engine)


@pytest.mark.parametrize("options", [
    ("c1", "c2", "-c", "3", "-i", "0.2", "--json"),
    ("c1", "c2", "-c", "1", "-v"),
    ("c1", "host", "-c", "1"),
    ("c1", "c2", "--tcp", "81", "-c", "2", "-i", "0.2"),
    ("c1", "c2", "--arp", "-c", "1", "--json"),
    ("c1", "c2", "-6", "-c", "1", "--json"),
    ("c1", "172.17.0.1", "--tcp", "8080", "-c", "1", "--json"),
    ("c1", "172.17.0.99", "-c", "1"),
    ("c1", "198.18.0.1", "-c", "1", "-W", "0.5", "--json"),
], ids=lambda options: " ".join(options))
def test_a_replay_is_what_was_shown(ping: Ping, dnettrace: Dnettrace, options: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    live = ping(*options, "-w", str(path))
    shown = [option for option in options if option in ("--json", "-v")]
    replayed = dnettrace("replay", str(path), *shown)
    assert live.stdout
    assert (replayed.stdout, replayed.returncode) == (live.stdout, live.returncode), live.stderr


def test_containers_that_come_and_go(ping: Ping, dnettrace: Dnettrace, engine: Engine, tmp_path: Path) -> None:
    """Topology that changes under the run is in the file, too."""
    path = tmp_path / "run.pcapng"
    engine.docker("network", "create", "later")
    try:
        loop = "sleep 0.5; docker run -d --name late --network later busybox sleep 60; sleep 0.5; docker rm -f late"
        changing = subprocess.Popen(["sh", "-c", loop], env=engine.env(), stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL)
        live = ping("c1", "c2", "-c", "15", "-i", "0.2", "--json", "-w", str(path))
        changing.wait()
    finally:
        engine.remove("late")
        engine.docker("network", "rm", "later")
    assert dnettrace("replay", str(path), "--json").stdout == live.stdout


def test_an_existing_file_and_a_bad_path_send_nothing(ping: Ping, tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    path.write_text("precious")
    done = ping("c1", "c2", "-c", "1", "-w", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "exists: choose another name, or add --force" in done.stderr and done.stderr.count("\n") == 1
    assert path.read_text() == "precious"
    assert ping("c1", "c2", "-c", "1", "-w", str(path), "--force").returncode == 0
    assert ping("c1", "c2", "-c", "1", "-w", str(tmp_path / "no/run")).returncode == 2


def test_a_full_disk(ping: Ping, dnettrace: Dnettrace, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
    try:
        done = ping("c1", "c2", "-c", "20", "-i", "0.05", "-w", str(folder / "run.pcapng"))
        assert done.returncode == 2
        assert "No space left on device" in done.stderr and done.stderr.count("\n") == 1
        replayed = dnettrace("replay", str(folder / "run.pcapng"))
        assert "it ends before the run did" in replayed.stdout
        assert "#1 " in replayed.stdout
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def started(engine: Engine, path: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(["nsenter", f"--net={engine.host_netns}", *program(), "ping", "c1", "c2", "-i", "0.2", "-w",
                             str(path), *options], env=engine.env(), stdout=subprocess.PIPE, text=True)


def lines_until(live: subprocess.Popen[str], beginning: str) -> str:
    """What it prints up to a line that begins so."""
    found = ""
    for line in live.stdout or ():
        found += line
        if line.startswith(beginning):
            break
    return found


def test_interrupted(engine: Engine, dnettrace: Dnettrace, tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    with started(engine, path) as live:
        shown = lines_until(live, "#3")
        live.send_signal(signal.SIGINT)
        shown += live.communicate()[0]
    assert live.returncode == 130
    assert dnettrace("replay", str(path)).stdout == shown


def test_followed_while_it_is_written(engine: Engine, dnettrace: Dnettrace, tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    with started(engine, path, "-c", "8") as live:
        shown = lines_until(live, "#2")
        following = dnettrace("replay", "--follow", str(path))
        shown += live.communicate()[0]
    assert following.stdout == shown


def test_killed(engine: Engine, dnettrace: Dnettrace, tmp_path: Path) -> None:
    """kill -9 leaves what was seen until then."""
    path = tmp_path / "run.pcapng"
    with started(engine, path) as live:
        lines_until(live, "#5")
        live.kill()
    replayed = dnettrace("replay", str(path)).stdout
    assert "#4" in replayed and "it ends before the run did" in replayed
