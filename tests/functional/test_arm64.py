"""The BPF programs as BCC compiles them on arm64: bytecode is the same for every processor, so this kernel can load them.

What this cannot show: arm64's BPF compiler in the kernel, its memory order, its tracepoints' stacks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tracer.kernel import btf, compiler
from tracer.kernel.architecture import ARCHITECTURES, architecture
from tracer.kernel.catalogue import TRACEPOINT_WAYS, Mechanism
from tracer.kernel.probes import Probes
from tracer.model.selection import Selection, Stream
from tracer.topology.snapshot import read_namespace

ASSERT = "#ifndef __aarch64__\n#error this is not compiled for arm64\n#endif\n_Static_assert(PAGE_SIZE == {}, \"page\");\n"


@pytest.fixture(params=[4096, 65536])
def arm64(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile for arm64 with pages of this size; all else stays this machine's."""
    sysconf, source = os.sysconf, compiler._source
    for module in (btf, compiler):
        monkeypatch.setattr(module, "architecture", lambda: ARCHITECTURES["aarch64"])
    monkeypatch.setattr(os, "sysconf", lambda name: request.param if name == "SC_PAGE_SIZE" else sysconf(name))
    monkeypatch.setattr(compiler, "_source", lambda name: source(name) + (
        ASSERT.format(request.param) if name == "probes.c" else ""))
    yield
    assert architecture() is ARCHITECTURES[os.uname().machine]


@pytest.mark.parametrize("selection", [
    Selection(4, "icmp", 0, (), ip_address("192.0.2.1")), Selection(6, "tcp", 64, (), ip_address("2001:db8::1"), 9),
    Stream("tcp port 9 and host 192.0.2.1", chosen=True)], ids=["v4", "v6", "stream"])
def test_it_compiles_and_loads(arm64: None, selection: Selection | Stream) -> None:
    with Probes(selection, rules=False, shed=isinstance(selection, Stream)) as probes:
        probes.watch(read_namespace("/proc/self/ns/net", "host", {}))
        probes.arm()
        assert probes.machine.missing == ()
        assert {"net_dev_queue", "netif_receive_skb", "kfree_skb", "netfilter"} <= set(probes.machine.attached)
        assert probes.read(0).lost == 0


@pytest.mark.parametrize("way", TRACEPOINT_WAYS, ids=lambda way: way.words)
def test_each_way_of_tracepoints(arm64: None, way: Mechanism) -> None:
    with Probes(Selection(4, "icmp", 0, (), ip_address("192.0.2.1")), mechanisms=(way,)) as probes:
        assert probes.machine.missing == ()
