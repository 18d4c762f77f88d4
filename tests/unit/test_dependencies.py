"""DESIGN.md's one-way table holds, the command starts light, and setup.cfg lists every package."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
TRACER = CHECKOUT / "tracer"
HEAVY = {"bcc", "numpy", "pyroute2", "rich", "scapy"}
COMMON = {"tracer", "tracer.errors"}  # the version and what ends a command

# What a folder may import beyond the standard library, itself and COMMON.
ALLOWED: dict[str, set[str]] = {
    "kernel": {"bcc", "numpy", "tracer.model", "tracer.topology.chains", "tracer.topology.netns",
               "tracer.topology.nfnetlink"},  # netns: to attach inside one
    "topology": {"pyroute2", "tracer.model"},
    "model": set(),
    "journey": {"tracer.model"},
    "map": {"tracer.model", "tracer.journey"},  # journey: the causes' words
    "capture": {"numpy", "tracer.model"},
    "traffic": {"scapy", "tracer.model", "tracer.topology.netns"},  # netns: to send from inside one
    "doctor": {"tracer.kernel", "tracer.model", "tracer.topology"},
    "render": {"rich", "tracer.model"},
    "cli": {"click", "rich", "tracer"},
}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Each module that a file imports, absolute, with its line. `from a import b` counts as `a.b` where that is ours."""
    for node in ast.walk(ast.parse(path.read_text(), path.name)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(CHECKOUT).parent.parts
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])]) if node.level \
                else node.module or ""
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield (name if is_module(name) else base), node.lineno


def is_module(name: str) -> bool:
    path = CHECKOUT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(f"{a}.") for a in allowed)


def files(folder: str = "") -> list[Path]:
    return sorted((TRACER / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", sorted(path.name for path in TRACER.iterdir() if list(path.glob("*.py"))))
def test_a_folder_imports_only_what_the_design_allows(folder: str) -> None:
    assert folder in ALLOWED, f"tracer/{folder} is new: say in ALLOWED, and in the design, what it may import"
    allowed = ALLOWED[folder] | {f"tracer.{folder}"}
    wrong = [f"{path.relative_to(CHECKOUT)}:{line} imports {name}" for path in files(folder)
             for name, line in imports(path)
             if name.split(".")[0] not in sys.stdlib_module_names and name not in COMMON and not within(name, allowed)]
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_the_command_line() -> None:
    wrong = [f"{path.relative_to(CHECKOUT)}:{line}" for path in files() if path.parent != TRACER / "cli"
             for name, line in imports(path) if within(name, {"tracer.cli"})]
    assert not wrong


def test_bcc_is_fenced_in_one_module() -> None:
    users = {str(path.relative_to(CHECKOUT)) for path in files() for name, _ in imports(path) if within(name, {"bcc"})}
    assert len(users) <= 1, users
    assert all(user.startswith("tracer/kernel/") for user in users)


def test_the_command_starts_without_heavy_modules() -> None:
    code = f"import sys, tracer.cli.main; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "", f"tracer.cli.main pulls in {done.stdout.strip()}: import it inside the command"


def test_setup_cfg_lists_every_package() -> None:
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    there = {".".join(path.parent.relative_to(CHECKOUT).parts) for path in files()}
    assert listed == there | {"tracer.bpf"}
