"""Which mechanism watches netfilter's hooks, by what the kernel refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from tracer.kernel import functions, syscall
from tracer.kernel.btf import Btf
from tracer.kernel.catalogue import Mechanism

LINK, FENTRY, KPROBE = syscall.TYPE_NETFILTER, syscall.TYPE_TRACING, syscall.TYPE_KPROBE


class Types:
    """A kernel with all types, or without some."""

    def __init__(self, *lacking: str) -> None:
        self.lacking = lacking

    def id(self, name: str, _kind: int) -> int:
        return 0 if name in self.lacking else 7

    def offset(self, _struct: str, _member: str) -> int:
        return 80


def find(monkeypatch: pytest.MonkeyPatch, refused: set[int], linked: bool = True,
         mechanisms: Collection[Mechanism] = tuple(Mechanism)) -> functions.HookWay:
    def load(_name: str, _code: bytes, kind: int, *_more: int) -> int:
        if kind in refused:
            raise OSError(errno.EPERM, "EPERM")
        return os.open("/dev/null", os.O_RDONLY)

    @contextmanager
    def types_of_module(types: Btf) -> Iterator[tuple[Btf, int]]:
        yield types, 0

    def opened(*_arguments: Any) -> int:
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(functions, "_types_of_module", types_of_module)
    monkeypatch.setattr(syscall, "load_program", load)
    monkeypatch.setattr(syscall, "open_kprobe", opened)
    monkeypatch.setattr(syscall, "open_raw_tracepoint", opened)
    return functions.find_way(cast(Btf, Types(*([] if linked else ["bpf_nf_ctx"]))), mechanisms)


def test_links_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(monkeypatch, set()) == functions.HookWay(Mechanism.NETFILTER_LINK)


def test_what_is_left_out_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(monkeypatch, set(), mechanisms=(Mechanism.KPROBE,)).mechanism is Mechanism.KPROBE
    assert find(monkeypatch, set(), mechanisms=(Mechanism.RAW_TRACEPOINT,)).mechanism is None


def test_then_fentry_and_then_kprobes(monkeypatch: pytest.MonkeyPatch) -> None:
    way = find(monkeypatch, set(), linked=False)
    assert way.mechanism is Mechanism.FENTRY
    assert {"-DCHAIN_NAME=80", "-DCHAIN_AT=0", "-DSKB_AT=1", "-DSTATE_AT=2"} < set(way.flags)
    assert find(monkeypatch, {LINK}).mechanism is Mechanism.FENTRY
    assert find(monkeypatch, {LINK, FENTRY}).mechanism is Mechanism.KPROBE


def test_where_none_is_to_be_had_each_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    way = find(monkeypatch, {LINK, FENTRY, KPROBE})
    assert (way.mechanism, way.flags) == (None, ())
    assert way.why == "netfilter links: EPERM; fentry: EPERM; kprobe: EPERM"


def test_a_module_that_is_not_loaded_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "MODULE", "no_such_module")
    monkeypatch.setattr(functions, "_no_links", lambda _types: "none here")
    way = functions.find_way(cast(Btf, Types("nft_chain")), tuple(Mechanism))
    assert way.why == "netfilter links: none here; function probes: no_such_module is not loaded"
