"""Fixtures for tests that need root: a private Docker engine, the built-in lab, the product's command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.conftest import missing
from tests.functional.engine import (
    BASE,
    NETNS,
    OURS,
    PATIENCE,
    Engine,
    EngineMissing,
    clear_leftovers,
    mounts,
    private_engine,
)

CHECKOUT = Path(__file__).parents[2]
# `sudo ./scripts/engines podman` makes a root with Podman, and runs it
collect_ignore = [] if "DNETTRACE_PODMAN_ROOT" in os.environ else ["test_podman.py"]
Done = subprocess.CompletedProcess[str]
Ping = Callable[..., Done]


class Dnettrace(Protocol):
    def __call__(self, *args: str, netns: str | None = None, env: Mapping[str, str] | None = None,
                 timeout: float = 60, **kw: Any) -> Done: ...


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.geteuid() != 0:
        missing("this test needs root: sudo ./scripts/test")


def program() -> list[str]:
    """The installed command of the environment that runs the tests, else the checkout's module."""
    script = Path(sys.executable).with_name("dnettrace")
    return [str(script)] if script.exists() else [sys.executable, "-m", "tracer.cli.main"]


@pytest.fixture(scope="session")
def dnettrace() -> Dnettrace:
    """Runs the product's command and returns what it printed; `netns=` is the namespace that it calls the host."""
    return call


def call(*args: str, netns: str | None = None, env: Mapping[str, str] | None = None, timeout: float = 60,
         **kw: Any) -> Done:
    enter = ["nsenter", f"--net={netns}"] if netns else []
    defaults: dict[str, Any] = {"cwd": CHECKOUT, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE,
                                "stderr": subprocess.PIPE, "text": True}
    return subprocess.run([*enter, *program(), *args], env=env, timeout=timeout * PATIENCE, **defaults | kw)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A real Docker engine in its own network namespace, with c1 and c2 running."""
    try:
        with private_engine() as running:
            yield running
    except EngineMissing as error:
        missing(str(error))


def pinging(dnettrace: Dnettrace, engine: Engine, *options: str) -> Ping:
    """Runs `dnettrace ping` on this engine's host."""
    return lambda *args, **kw: dnettrace("ping", *args, *options, netns=engine.host_netns, env=engine.env(), **kw)


@pytest.fixture
def ping(dnettrace: Dnettrace, engine: Engine) -> Ping:
    """One probe, told as JSON, for tests.functional.way.read()."""
    return pinging(dnettrace, engine, "-c", "1", "--json")


@pytest.fixture
def outside(engine: Engine) -> str:
    """The name of the namespace behind the host's uplink."""
    return f"{engine.name}-wan"


@pytest.fixture(scope="session")
def lab(dnettrace: Dnettrace) -> Iterator[None]:
    """The built-in lab, up for the session. One that was up before stays up."""
    was_up = any(NETNS.glob("dnettrace-lab-*"))
    up = dnettrace("lab", "up")
    assert up.returncode == 0, f"dnettrace lab up: {up.stderr or up.stdout}"
    yield
    if was_up:
        return
    down = dnettrace("lab", "down")
    assert down.returncode == 0, f"dnettrace lab down: {down.stderr or down.stdout}"


def traces() -> dict[str, set[str]]:
    """What somebody would find on the machine that was not there before."""
    links = [line.split(":")[1].strip().split("@")[0] for line in output("ip", "-o", "link").splitlines()]
    namespaces = {path.name for path in NETNS.iterdir()} if NETNS.is_dir() else set()
    watched = (str(BASE / "dnt"), str(NETNS) + "/", "/sys/fs/bpf")
    return {
        "named namespaces": {name for name in namespaces if not of_another_run(name)},
        "links": set(links),
        "nftables' tables": set(output("nft", "list", "tables").splitlines()),
        "mounts": {point for point in mounts() if point.startswith(watched) and not of_another_run(point)},
        "the engine's settings": {str(path) for path in Path("/etc/docker").rglob("*")},
        "folders": {path.name for path in BASE.glob("dnt*-engine") if not of_another_run(path.name)},
    }


def output(*argv: str) -> str:
    return subprocess.run(argv, text=True, capture_output=True, check=True).stdout


def of_another_run(name: str) -> bool:
    """Belongs to tests that run on this machine at the same time."""
    if "dnettrace-lab-" in name and "DNETTRACE_NO_LAB" in os.environ:  # scripts/test: the other half has it
        return True
    match = OURS.search(name)
    return match is not None and int(match[1]) != os.getpid() and Path("/proc", match[1]).exists()


@pytest.fixture(scope="session", autouse=True)
def no_leftovers() -> Iterator[None]:
    """Fails the session when namespaces, links, tables, mounts or files are left on the machine after it."""
    clear_leftovers()
    before = traces()
    yield
    deadline = time.monotonic() + 5  # the kernel takes namespaces down in the background
    while (left := difference(before, traces())) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"the tests left behind: {left}"


def difference(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, list[str]]:
    return {kind: sorted(after[kind] - before[kind]) for kind in after if after[kind] - before[kind]}
