"""What dnettrace observes, and by which mechanisms, best first. Each is tried by loading it: nothing is concluded from a
kernel's version (some report fentry as supported and refuse it all the same).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from tracer.model.layout import HOOK_BEGINS, HOOK_ENDS, Function, Place


class Mechanism(Enum):
    CAST_TRACEPOINT = auto()  # the next, with bpf_rdonly_cast for packet bytes, Linux 6.2 (a35b9af4ec2c)
    TYPED_TRACEPOINT = auto()  # a BTF-typed raw tracepoint, Linux 5.5 (ac4414b5ca47): plain loads
    RAW_TRACEPOINT = auto()  # Linux 4.17: every read through bpf_probe_read_kernel
    NETFILTER_LINK = auto()  # Linux 6.4 (fd9c663b9ad6): at each hook, in each namespace that is watched
    FENTRY = auto()  # a kernel function's entry, in modules since Linux 5.11 (290248a5b7d8); arm64 since 6.4 (2aa6ac03516d)
    KPROBE = auto()  # the same by a breakpoint, with every read through bpf_probe_read_kernel

    @property
    def words(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Probe:
    name: str  # the tracepoint's or the kernel function's, where it is one; with RETURN where that returns
    shows: str  # said where it is missing
    function: str  # in bpf/probes.c
    variant: int | None  # what the loader writes into it, where one function serves several probes
    ways: tuple[Mechanism, ...]
    required: bool = False  # without it there is nothing to trace
    version: int | None = None  # of IP, where it concerns one only
    armed: bool = False  # attached only while a probe is under way
    module: str = ""  # that has the function, where it is not built in
    # Of a function that makes more exact what other probes show: without it nothing is missing. It is there for test
    # packets, and in a stream that is wanted in detail while something matches: a busy host's packets would pay for it. What
    # its first parameters point to must be these structs; and of which transport protocol's packets it is about, where not
    # of all.
    takes: tuple[str, ...] = ()
    transport: str | None = None

    @property
    def symbol(self) -> str:
        """The kernel function."""
        return self.name.removesuffix(RETURN)

    @property
    def returns(self) -> bool:
        """Is it probed as it returns, not as it begins?"""
        return self.name.endswith(RETURN)


# The maps belong to one compiled program, so the first way that all required tracepoints can go is the way of all.
TRACEPOINT_WAYS = (Mechanism.CAST_TRACEPOINT, Mechanism.TYPED_TRACEPOINT, Mechanism.RAW_TRACEPOINT)
RETURN = "%return"  # behind a function's name, as perf writes it
FUNCTION_WAYS = (Mechanism.FENTRY, Mechanism.KPROBE)
# Where there are no netfilter links: what runs nftables' chains, with empty ones of our own in the links' places. Its
# address is in each chain's hook, so that no compiler may drop it, rename it (.isra, .constprop) or change its arguments.
CHAINS = ("nft_do_chain_ipv4", "nft_do_chain_ipv6")
# Where there are no chains either: what runs all that is registered at a hook, as if there were a link in front of it and
# one behind. It is no module's, and its arguments have been the same since Linux 4.15.
WHOLE_HOOKS = ("nf_hook_slow", f"nf_hook_slow{RETURN}")
# Beside them: what tells iptables-legacy's tables apart. Only a kprobe wants the beginning, too: it has the arguments.
TABLES = (f"ipt_do_table{RETURN}", f"ip6t_do_table{RETURN}")
TABLES_BEGIN = ("ipt_do_table", "ip6t_do_table")

HOOKED, BRIDGE, DELIVERY, NEIGHBOR = (
    "netfilter's hooks and tables", "a bridge's decision", "local delivery", "waiting for a MAC")
SKB, SOCKET = ("sk_buff",), ("sock", "sk_buff")

# Of a bridge's functions, those that tell what was decided: br_handle_frame_finish comes before them, or before a drop whose
# stack names it; and what br_nf_* have netfilter do is seen at its hooks.
CATALOGUE = (
    Probe("net_dev_queue", "devices that send", "on_device", Place.QUEUE, TRACEPOINT_WAYS, required=True),
    Probe("netif_receive_skb", "devices that receive", "on_device", Place.RECEIVE, TRACEPOINT_WAYS, required=True),
    Probe("kfree_skb", "drops and their reasons", "on_end", Place.DROP, TRACEPOINT_WAYS),
    Probe("consume_skb", "the end of a packet's life", "on_end", Place.CONSUME, TRACEPOINT_WAYS),
    Probe("fib_table_lookup", "route lookups", "on_route", None, TRACEPOINT_WAYS, version=4, armed=True),
    Probe("fib6_table_lookup", "route lookups", "on_route6", None, TRACEPOINT_WAYS, version=6, armed=True),
    Probe("netfilter", HOOKED, "on_hook", None, (Mechanism.NETFILTER_LINK,)),
    Probe(CHAINS[0], HOOKED, "on_chain", None, FUNCTION_WAYS, version=4, armed=True, module="nf_tables"),
    Probe(CHAINS[1], HOOKED, "on_chain", None, FUNCTION_WAYS, version=6, armed=True, module="nf_tables"),
    Probe(WHOLE_HOOKS[0], HOOKED, "on_whole_hook", HOOK_BEGINS, FUNCTION_WAYS, armed=True),
    Probe(WHOLE_HOOKS[1], HOOKED, "on_whole_hook", HOOK_ENDS, FUNCTION_WAYS, armed=True),
    Probe(TABLES_BEGIN[0], HOOKED, "on_table", HOOK_BEGINS, (Mechanism.KPROBE,), version=4, armed=True, module="ip_tables"),
    Probe(TABLES_BEGIN[1], HOOKED, "on_table", HOOK_BEGINS, (Mechanism.KPROBE,), version=6, armed=True, module="ip6_tables"),
    Probe(TABLES[0], HOOKED, "on_table", HOOK_ENDS, FUNCTION_WAYS, version=4, armed=True, module="ip_tables"),
    Probe(TABLES[1], HOOKED, "on_table", HOOK_ENDS, FUNCTION_WAYS, version=6, armed=True, module="ip6_tables"),
    Probe("__br_forward", BRIDGE, "on_function", Function.FORWARD, FUNCTION_WAYS, module="bridge",
          takes=("net_bridge_port", "sk_buff")),
    Probe("br_flood", BRIDGE, "on_function", Function.FLOOD, FUNCTION_WAYS, module="bridge",
          takes=("net_bridge", "sk_buff")),
    Probe("br_pass_frame_up", BRIDGE, "on_function", Function.LOCAL, FUNCTION_WAYS, module="bridge", takes=SKB),
    Probe("__udp_enqueue_schedule_skb", DELIVERY, "on_function", Function.SOCKET, FUNCTION_WAYS, takes=SOCKET,
          transport="udp"),
    Probe("tcp_v4_do_rcv", DELIVERY, "on_function", Function.SOCKET, FUNCTION_WAYS, version=4, takes=SOCKET,
          transport="tcp"),
    Probe("tcp_v6_do_rcv", DELIVERY, "on_function", Function.SOCKET, FUNCTION_WAYS, version=6, takes=SOCKET,
          transport="tcp"),
    Probe("icmpv6_rcv", DELIVERY, "on_function", Function.PROTOCOL, FUNCTION_WAYS, version=6, takes=SKB,
          transport="icmp"),
    Probe("neigh_resolve_output", NEIGHBOR, "on_function", Function.NEIGHBOR, FUNCTION_WAYS,
          takes=("neighbour", "sk_buff")),
)


def shown_by(name: str) -> str | None:
    """What a probe shows, by its name or by what it is called where it is missing, as "netfilter in c1"."""
    return next((probe.shows for probe in CATALOGUE if name == probe.name or name.startswith(f"{probe.name} in ")), None)
