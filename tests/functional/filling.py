"""The product's ring buffer, filled by a BPF program as fast as it goes: no packets, nothing attached."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from unittest.mock import patch

from tracer.kernel import compiler, probes, syscall
from tracer.kernel.btf import Btf
from tracer.kernel.compiler import Program
from tracer.model.selection import Selection

FLAGS = ("-DTYPED", *probes.selection_flags(Selection(4, "icmp", 1, (), ip_address("192.0.2.1"))))
EVENTS = 64  # of one run of the program
PROG_TEST_RUN = 10  # enum bpf_cmd
SOURCE = f"""
static __always_inline void fill_one(struct event *e, u64 number) {{
  if (!e)
    return;
  e->skb = number;
  e->depth = 1;
  *(u64 *)(e + 1) = number; /* what follows the event */
  events.ringbuf_submit(e, 0);
}}

/* Events of two sizes, numbered from ctx[0] on, with discarded records between them. */
int on_fill(u64 *ctx) {{
  u64 first = ctx[0];
  for (u32 i = 0; i < {EVENTS}; i++) {{
    u64 number = first + i;
    if (number % 7 == 0) {{
      void *unwanted = events.ringbuf_reserve(sizeof(struct event));
      if (unwanted)
        events.ringbuf_discard(unwanted, 0);
    }}
    if (number % 3 == 0)
      fill_one(reserve(PLACE_HOOK), number);
    else
      fill_one(reserve(PLACE_QUEUE), number);
  }}
  return 0;
}}
"""


@contextmanager
def filled_ring(ring_bytes: int = 1 << 20) -> Iterator[tuple[Program, Callable[[int], None]]]:
    """The program with the ring buffer `events` and the counters `lost`; and what emits EVENTS events, numbered from its
    argument on."""
    source = compiler._source
    with ExitStack() as stack:
        btf = Btf()
        stack.callback(btf.close)
        with patch.object(compiler, "_source", lambda name: source(name) + (SOURCE if name == "probes.c" else "")):
            program = compiler.compile_program(btf, (*FLAGS, f"-DRING_BYTES={ring_bytes}"))
        stack.callback(program.close)
        fd = syscall.load_program("on_fill", program.bytecode("on_fill"), syscall.TYPE_RAW_TRACEPOINT)
        stack.callback(os.close, fd)

        def fill(first: int) -> None:
            context = ctypes.create_string_buffer(struct.pack("Q", first), 8)
            syscall._bpf(PROG_TEST_RUN, struct.pack("I28xIIIIQ", fd, 0, 0, 8, 0, ctypes.addressof(context)))

        yield program, fill
