"""Which mechanism watches netfilter's hooks and functions, by what the kernel refuses."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tracer.kernel import functions, syscall
from tracer.kernel.architecture import architecture
from tracer.kernel.btf import Btf
from tracer.kernel.catalogue import CATALOGUE, TABLES, TABLES_BEGIN, WHOLE_HOOKS, Mechanism

X86 = platform.machine() == "x86_64"
LINK, FENTRY, KPROBE = syscall.TYPE_NETFILTER, syscall.TYPE_TRACING, syscall.TYPE_KPROBE


class Types:
    """A kernel with all types, or without some."""

    def __init__(self, *lacking: str) -> None:
        self.lacking = lacking

    def id(self, name: str, _kind: int) -> int:
        return 0 if name in self.lacking else 7

    def offset(self, _struct: str, _member: str) -> int:
        return 80

    def parameters(self, _function: int) -> tuple[str, ...]:
        return ("sock", "sk_buff")


def kernel(monkeypatch: pytest.MonkeyPatch, refused: set[int]) -> None:
    def load(_name: str, _code: bytes, kind: int, *_more: int) -> int:
        if kind in refused:
            raise OSError(errno.EPERM, "EPERM")
        return os.open("/dev/null", os.O_RDONLY)

    @contextmanager
    def types_of(types: Btf, _module: str) -> Iterator[tuple[Btf, int]]:
        yield types, 0

    def opened(*_arguments: Any) -> int:
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(functions, "_types_of", types_of)
    monkeypatch.setattr(syscall, "load_program", load)
    monkeypatch.setattr(syscall, "open_kprobe", opened)
    monkeypatch.setattr(syscall, "open_raw_tracepoint", opened)


def find(monkeypatch: pytest.MonkeyPatch, refused: set[int], linked: bool = True,
         mechanisms: Collection[Mechanism] = tuple(Mechanism)) -> functions.HookWay:
    kernel(monkeypatch, refused)
    return functions.find_way(cast(Btf, Types(*([] if linked else ["bpf_nf_ctx"]))), mechanisms)


def test_links_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(monkeypatch, set()) == functions.HookWay(Mechanism.NETFILTER_LINK)


def test_what_is_left_out_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(monkeypatch, set(), mechanisms=(Mechanism.KPROBE,)).mechanism is Mechanism.KPROBE
    assert find(monkeypatch, set(), mechanisms=(Mechanism.RAW_TRACEPOINT,)).mechanism is None


def test_then_fentry_and_then_kprobes(monkeypatch: pytest.MonkeyPatch) -> None:
    way = find(monkeypatch, set(), linked=False)
    assert way.mechanism is Mechanism.FENTRY
    assert {"-DCHAIN_NAME=80", "-DFIRST_AT=0", "-DSECOND_AT=1", "-DTHIRD_AT=2"} < set(way.flags)
    assert find(monkeypatch, {LINK}).mechanism is Mechanism.FENTRY
    assert find(monkeypatch, {LINK, FENTRY}).mechanism is Mechanism.KPROBE


def test_where_none_is_to_be_had_each_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    way = find(monkeypatch, {LINK, FENTRY, KPROBE})
    assert (way.mechanism, way.flags) == (None, ())
    assert way.why == "netfilter links: EPERM; fentry: EPERM; kprobe: EPERM"


def test_without_nf_tables_hooks_are_seen_as_a_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chain = next(probe for probe in CATALOGUE if probe.name == "nft_do_chain_ipv4")
    others = tuple(probe for probe in CATALOGUE if probe.name in WHOLE_HOOKS)
    monkeypatch.setattr(functions, "CATALOGUE", (replace(chain, module="no_such_module"), *others))
    monkeypatch.setattr(functions, "_no_links", lambda _types: "none here")
    kernel(monkeypatch, {FENTRY})
    way = functions.find_way(cast(Btf, Types("nft_chain")), tuple(Mechanism))
    assert (way.mechanism, way.why, way.probes) == (Mechanism.KPROBE, "", WHOLE_HOOKS)
    assert {"-DRESULT_AT=10", "-DSTACK_AT=19", "-DRETURN_BYTES=8", "-DFIRST_AT=14"} < set(way.flags) or not X86
    assert way.lacks == "no_such_module"  # with which it is done better
    monkeypatch.setattr(functions, "MODULES", tmp_path)
    (tmp_path / "no_such_module").mkdir()  # loaded, without types
    way = functions.find_way(cast(Btf, Types("nft_chain")), tuple(Mechanism))
    assert (way.probes, way.lacks) == (WHOLE_HOOKS, "")


@pytest.mark.parametrize(("parameters", "places"), [
    (("", "sk_buff", "nf_hook_state"), (0, 1, 2)),
    (("sk_buff", "nf_hook_state", "xt_table"), (2, 0, 1)),  # before Linux 5.16
    (("sk_buff", "net"), None),
])
def test_tables_of_iptables_legacy_by_what_their_function_takes(
        monkeypatch: pytest.MonkeyPatch, parameters: tuple[str, ...], places: tuple[int, int, int] | None) -> None:
    kernel(monkeypatch, set())
    monkeypatch.setattr(Types, "parameters", lambda *_arguments: parameters)
    here = architecture()
    for way, wanted, at, result in ((Mechanism.FENTRY, TABLES, (0, 1, 2), 3),
                                    (Mechanism.KPROBE, (*TABLES_BEGIN, *TABLES), here.arguments, here.result)):
        names, flags = functions._tables(cast(Btf, Types()), way)
        if places is None:
            assert (names, flags) == ([], ())
        else:
            assert names == list(wanted)
            table, packet, state = (at[place] for place in places)
            assert flags == (f"-DTABLE_AT={table}", f"-DSKB_AT={packet}", f"-DSTATE_AT={state}",
                             f"-DTABLE_RESULT_AT={result}", "-DTABLE_NAME=80")
    kernel(monkeypatch, {FENTRY})
    assert functions._tables(cast(Btf, Types()), Mechanism.FENTRY) == ([], ())


@pytest.mark.parametrize("way", [Mechanism.FENTRY, Mechanism.KPROBE])
def test_the_return_of_a_function_has_programs_of_its_own_kind(monkeypatch: pytest.MonkeyPatch, way: Mechanism) -> None:
    loaded: list[tuple[int, ...]] = []
    opened: list[tuple[str, bool]] = []
    kernel(monkeypatch, set())
    monkeypatch.setattr(syscall, "load_program", lambda _name, _code, *kinds: (loaded.append(kinds), 9)[1])
    monkeypatch.setattr(syscall, "open_kprobe", lambda _program, name, returns: (opened.append((name, returns)), 9)[1])
    for probe in (probe for probe in CATALOGUE if probe.name in WHOLE_HOOKS):
        functions.load_function(cast(Btf, Types()), "x", replace(probe, takes=()), functions.ZERO, way)
        functions.open_function(9, probe, way)
    if way is Mechanism.FENTRY:
        assert [kinds[1] for kinds in loaded] == [syscall.ATTACH_TRACE_FENTRY, syscall.ATTACH_TRACE_FEXIT]
    else:
        assert opened == [("nf_hook_slow", False), ("nf_hook_slow", True)]


@pytest.mark.parametrize(("hooks", "refused", "way"), [
    (Mechanism.NETFILTER_LINK, set(), Mechanism.FENTRY),
    (Mechanism.NETFILTER_LINK, {FENTRY}, None),  # kprobes would have all programs read as they must
    (Mechanism.FENTRY, set(), Mechanism.FENTRY),
    (Mechanism.KPROBE, set(), Mechanism.KPROBE),
    (None, {FENTRY, KPROBE}, None),
])
def test_other_functions_are_probed_as_the_hooks_are_or_by_fentry(
        monkeypatch: pytest.MonkeyPatch, hooks: Mechanism | None, refused: set[int], way: Mechanism | None) -> None:
    kernel(monkeypatch, refused)
    found = functions.find_functions(cast(Btf, Types()), functions.HookWay(hooks), tuple(Mechanism))
    assert found.mechanism is way
    assert ({"-DFUNCTIONS", "-DPORT_DEV=80"} <= set(found.flags)) == bool(way)
    hooks_have_it = hooks is not Mechanism.NETFILTER_LINK
    assert ("-DFIRST_AT=0" in found.flags) == (way is not None and not hooks_have_it)


def test_a_function_with_other_arguments_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(monkeypatch, set())
    (probe,) = [probe for probe in CATALOGUE if probe.name == "__br_forward"]
    with pytest.raises(OSError, match="no function __br_forward that dnettrace knows"):
        functions.load_function(cast(Btf, Types()), "x", probe, functions.ZERO, Mechanism.FENTRY)


def test_a_kprobe_finds_what_the_compiler_renamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (probe,) = [probe for probe in CATALOGUE if probe.name == "__br_forward"]
    tried: list[str] = []

    def opened(_program: int, function: str, _returns: bool) -> int:
        tried.append(function)
        if function == probe.name:
            raise OSError(errno.ENOENT, "ENOENT")
        return 7

    monkeypatch.setattr(syscall, "open_kprobe", opened)
    monkeypatch.setattr(functions, "KALLSYMS", tmp_path / "kallsyms")
    functions.KALLSYMS.write_text(
        "0 t my__br_forward.isra.0\t[x]\n0 t __br_forward.part.0\t[bridge]\n0 t __br_forward.cold\t[bridge]\n")
    with pytest.raises(FileNotFoundError, match="no function __br_forward"):
        functions.open_function(3, probe, Mechanism.KPROBE)
    functions.KALLSYMS.write_text(functions.KALLSYMS.read_text() + "0 t __br_forward.isra.0\t[bridge]\n")
    assert functions.open_function(3, probe, Mechanism.KPROBE) == 7
    assert tried == ["__br_forward", "__br_forward", "__br_forward.isra.0"]
