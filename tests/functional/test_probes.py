"""The probes on this kernel: types, fallbacks, and what is said where something is missing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from ipaddress import ip_address

import pytest

from tests.functional.conftest import CHECKOUT, Dnettrace
from tests.functional.way import read, switched
from tests.unit.test_layout import ROOT
from tracer.errors import UserError
from tracer.kernel import compiler, probes
from tracer.kernel.btf import Btf
from tracer.kernel.catalogue import CATALOGUE, Mechanism
from tracer.model import layout
from tracer.model.selection import Selection

FLAGS = ("-DTYPED", *probes.selection_flags(Selection(4, "icmp", 1, (), ip_address("192.0.2.1"))))


def python(code: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: a failing compile may take BCC 0.26, and with it the process, down."""
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=CHECKOUT)


def test_sizes_and_offsets_are_the_compiler_s(monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import runpy
    _enums, structs = runpy.run_path(str(ROOT / "scripts/layout"))["read"]((ROOT / "bpf/event.h").read_text())
    sizes, offset, checks = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}, 0, []
    for member, kind, length in structs["event"]:
        checks.append(f"_Static_assert(__builtin_offsetof(struct event, {member}) == {offset}, \"{member}\");")
        offset += sizes[kind] * (length or 1)
    assert offset == layout.EVENT.size
    for name, format in (("event", layout.EVENT), ("stack", layout.STACK)):
        checks.append(f"_Static_assert(sizeof(struct {name}) == {format.size}, \"{name}\");")
    source = compiler._source
    monkeypatch.setattr(compiler, "_source", lambda name: source(name) + "\n".join(["", *checks, ""]))
    compiler.compile_program(Btf(), FLAGS).close()


def test_clang_s_words_reach_the_user() -> None:
    done = python("""
        from ipaddress import ip_address
        from tracer.kernel import compiler, probes
        from tracer.model.selection import Selection
        from tracer.kernel.btf import Btf
        source = compiler._source
        compiler._source = lambda name: source(name) + "int on_wrong(u64 *ctx) { return nonsense; }"
        compiler.compile_program(Btf(), probes.selection_flags(Selection(4, "icmp", 1, (), ip_address("192.0.2.1"))))
    """)
    assert done.returncode != 0
    assert "use of undeclared identifier 'nonsense'" in done.stderr


def test_a_refused_program_says_what_the_verifier_said() -> None:
    from tracer.kernel import syscall
    with pytest.raises(OSError, match="R0 !read_ok"):
        syscall.load_program("wrong", b"\x95" + bytes(7), syscall.TYPE_RAW_TRACEPOINT)  # exit without a value


@pytest.mark.usefixtures("lab")
def test_without_btf_typed_tracepoints_the_raw_ones_show_the_same(dnettrace: Dnettrace) -> None:
    code = """
        import sys
        from tracer.kernel import probes
        from tracer.kernel.catalogue import Mechanism
        probes.TRACEPOINT_WAYS = (Mechanism.RAW_TRACEPOINT,)
        from tracer.cli.main import main
        sys.exit(main(["--lab", "ping", "c1", "c2", "-c", "1", "--json"]))
    """
    read(dnettrace("--lab", "ping", "c1", "c2", "-c", "1", "--json"))  # a packet that waits for a MAC begins later
    output = read(python(code))
    assert output.way(output.only("request")) == switched("c1", "c2")
    assert output.way(output.only("reply")) == switched("c2", "c1")


@pytest.mark.usefixtures("lab")
def test_without_netfilter_links_that_is_said_and_the_rest_is_shown(dnettrace: Dnettrace) -> None:
    code = """
        import sys
        from tracer.kernel import probes, syscall
        load = syscall.load_program
        def refuse(name, *args):
            if name.startswith("hook_"):
                raise OSError(22, "EINVAL")
            return load(name, *args)
        syscall.load_program = refuse
        from tracer.cli.main import main
        sys.exit(main(["--lab", "ping", "c1", "c2", "-c", "1", "--json"]))
    """
    read(dnettrace("--lab", "ping", "c1", "c2", "-c", "1", "--json"))  # a packet that waits for a MAC begins later
    output = read(python(code))
    (missing,) = output.start["probes"]["missing"]
    assert missing["name"] == "netfilter"
    assert missing["why"].startswith("netfilter links: EINVAL; ")
    hooks = {"prerouting", "input", "forward", "output", "postrouting"}
    seen = [hop for hop in output.only("request")["hops"] if hop["stage"] in hooks]
    assert output.way(output.only("request")) == [
        h for h in switched("c1", "c2") if h.split()[2] not in hooks or h.startswith("host docker0")]
    assert {hop["inferred"] for hop in seen} == {False} and all(hop["rules"] for hop in seen)  # by nftables' messages


def test_no_tracepoint_at_all_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(1, "EPERM")

    monkeypatch.setattr(probes.syscall, "load_program", refuse)
    with pytest.raises(UserError, match="lets no tracepoint program load"):
        probes.Probes(Selection(4, "icmp", 1, (), ip_address("192.0.2.1")))


def test_every_required_probe_has_a_fallback() -> None:
    assert all(len(probe.ways) > 1 for probe in CATALOGUE if probe.required)
    assert {way for probe in CATALOGUE for way in probe.ways} == set(Mechanism)


@pytest.mark.usefixtures("lab")
def test_two_tracers_at_once_do_not_see_each_other(dnettrace: Dnettrace) -> None:
    from tests.functional.conftest import program
    other = subprocess.Popen([*program(), "--lab", "ping", "c1", "c2", "-i", "0.05", "-c", "20", "--json"],
                             stdout=subprocess.PIPE, text=True)
    output = read(dnettrace("--lab", "ping", "c1", "c2", "-c", "10", "-i", "0.05", "--json"))
    text, _ = other.communicate(timeout=60)
    for seq in range(1, 11):
        assert output.way(output.only("request", seq)) == switched("c1", "c2")
    assert other.returncode == 0
    assert len({j["packet"]["icmp_id"] for j in output.of("request")}) == 1
    assert '"missing": []' in text.splitlines()[0]
