"""What differs from processor to processor."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import pytest

from tracer.errors import UserError
from tracer.kernel import architecture as module, compiler
from tracer.kernel.architecture import ARCHITECTURES, architecture

CHECKOUT = Path(__file__).parents[2]
GENERIC = {"bpf": 280, "membarrier": 283}  # include/uapi/asm-generic/unistd.h, which arm64 takes as it is
UNISTD = Path("/usr/include/asm-generic/unistd.h")


def test_this_machine_s() -> None:
    assert architecture() is ARCHITECTURES[os.uname().machine]
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    assert ARCHITECTURES["aarch64"].ordered is False
    assert {name: getattr(ARCHITECTURES["aarch64"], name) for name in GENERIC} == GENERIC
    if UNISTD.exists():
        text = UNISTD.read_text()
        assert {name: int(re.findall(rf"#define __NR_{name} (\d+)", text)[0]) for name in GENERIC} == GENERIC


@pytest.mark.parametrize("machine", ["aarch64_be", "armv8l", "i686", "riscv64"])
def test_another_is_refused(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(UserError, match=f"not on {machine}: "):
        architecture()


def test_nothing_else_asks_which_processor_it_is() -> None:
    """And nothing counts with pages of 4096 bytes, names a register, or has a type whose sign differs."""
    for path in (CHECKOUT / "tracer").rglob("*.py"):
        assert "platform.machine" not in path.read_text() or path.samefile(str(module.__file__)) or \
            path.name == "examine.py", path
    for path in (CHECKOUT / "bpf").iterdir():
        code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
        assert not re.search(r"\b(PT_REGS\w*|4096 \*|char|long|__x86_64__)\b", code), path


def test_a_kernel_builder_s_environment_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCH", "riscv")
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    with compiler._kernel_source("/nowhere"):
        assert (os.environ["ARCH"], os.environ["BCC_KERNEL_SOURCE"]) == (architecture().folder, "/nowhere")
    assert os.environ["ARCH"] == "riscv"
    assert "BCC_KERNEL_SOURCE" not in os.environ
