"""bcc, fenced: the only module that touches it. BPF C in; bytecode, maps and symbol names out."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tracer.errors import UserError
from tracer.kernel.architecture import architecture
from tracer.kernel.btf import Btf, write_headers

_PACKAGED = Path(__file__).resolve().parent.parent / "bpf"
FOLDER = "dnettrace-"
SOURCES = _PACKAGED if _PACKAGED.is_dir() else _PACKAGED.parent.parent / "bpf"  # installed, or in a checkout


class Program(Protocol):
    """A compiled object: what the rest of the package needs of bcc.BPF."""

    def bytecode(self, function: str) -> bytes: ...
    def map_fd(self, name: str) -> int: ...
    def set_keys(self, table: str, keys: Set[bytes]) -> None: ...
    def symbol(self, address: int) -> str: ...
    def close(self) -> None: ...


EXPRESSION_MARK = "/* FILTER EXPRESSION */"  # bpf/stream.h


def compile_program(btf: Btf, flags: tuple[str, ...], expression: str = "") -> Program:
    """Compile bpf/probes.c, with the C of a filter expression where traffic is followed. UserError without bcc, or with
    clang's words where it fails."""
    bcc = _import_bcc()
    _clear_leftovers()
    with tempfile.TemporaryDirectory(prefix=f"{FOLDER}{os.getpid()}-") as root, _kernel_source(root):
        write_headers(btf, Path(root))
        try:
            # BCC's own prologue is full of warnings; errors go to file descriptor 2, straight to the user: collecting them
            # would lose them where BCC dies of a half-parsed source, as 0.26 does. Debian 13's BCC asks for cf-protection,
            # which is x86's alone, and clang refuses it for another processor
            text = _source("probes.c").replace(EXPRESSION_MARK, expression)
            return _Bcc(bcc.BPF(text=text.encode(), cflags=["-Wno-everything", "-fcf-protection=none", *flags]))
        except Exception as error:
            raise UserError("The BPF programs did not compile on this kernel; please report this, with what clang wrote "
                            f"above ({error}).") from None


def bcc_version() -> str:
    """UserError without bcc."""
    return str(getattr(_import_bcc(), "__version__", "?"))


def _clear_leftovers() -> None:
    """BCC wants its headers in a folder, and a `kill -9` during the 0.2 s that it compiles leaves that behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}[0-9]*-*"):
        if not Path("/proc", folder.name.removeprefix(FOLDER).partition("-")[0]).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _import_bcc() -> Any:
    try:
        import bcc
    except ImportError as error:
        raise UserError("The Python binding of BCC is missing: run `sudo ./scripts/setup`, or install python3-bpfcc "
                        f"(Debian, Ubuntu) or python3-bcc (Fedora) ({error}).") from None
    if not hasattr(bcc, "BPF"):
        raise UserError("The module `bcc` found is PyPI's, which is another project: uninstall it and run "
                        "`sudo ./scripts/setup`.")
    return bcc


@contextmanager
def _kernel_source(root: str) -> Iterator[None]:
    """Where libbcc looks for kernel headers, for as long as it compiles; and for which processor it does, which it would
    else take from the ARCH of somebody who builds kernels."""
    ours = {"BCC_KERNEL_SOURCE": root, "ARCH": architecture().folder}
    before = {name: os.environ[name] for name in ours if name in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
        os.environ.update(before)


def _source(name: str) -> str:
    """One text: BCC rewrites map operations in the main file only, not in what that includes."""
    text = (SOURCES / name).read_text().replace("#pragma once\n", "")
    return re.sub(r'^#include "(\w+\.h)"$', lambda match: _source(match[1]), text, flags=re.M)


class _Bcc:
    """Program, by a bcc.BPF."""

    def __init__(self, bpf: Any) -> None:
        self._bpf = bpf

    def bytecode(self, function: str) -> bytes:
        """OSError where bpf/probes.c has no such function on this kernel."""
        try:
            code: bytes = self._bpf.dump_func(function.encode())  # maps are resolved to file descriptors
        except Exception as error:  # bcc raises nothing more exact
            raise OSError(errno.ENOENT, str(error)) from None
        return code

    def map_fd(self, name: str) -> int:
        fd: int = self._bpf[name.encode()].map_fd
        return fd

    def set_keys(self, table: str, keys: Set[bytes]) -> None:
        present = self._bpf[table.encode()]
        before = {bytes(key) for key in present}
        for key in keys - before:
            present[present.Key.from_buffer_copy(key)] = present.Leaf(1)
        for key in before - keys:
            del present[present.Key.from_buffer_copy(key)]

    def symbol(self, address: int) -> str:
        name: bytes = self._bpf.ksym(address)
        return name.decode()

    def close(self) -> None:
        self._bpf.cleanup()
