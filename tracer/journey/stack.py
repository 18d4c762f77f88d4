"""What a kernel stack says of the packet that it was taken for.

A stack goes on past the packet's own way: into the softirq that polled it, the task that the softirq interrupted, or the
packet whose arrival made this one (an echo reply is built inside the request's delivery) or let it go on (a neighbour's
answer). What counts are the frames since the packet was last received.
"""

from __future__ import annotations

from functools import lru_cache

_TRACING = ("bpf_prog_", "bpf_trace_", "__bpf_trace_", "__traceiter_")
_RECEIVING = frozenset((
    "netif_receive_skb", "netif_receive_skb_internal", "__netif_receive_skb", "__netif_receive_skb_core",
    "__netif_receive_skb_one_core", "__netif_receive_skb_list_core", "netif_receive_skb_list_internal", "process_backlog",
    "__napi_poll", "napi_poll", "net_rx_action"))
_LETTING_GO = frozenset(("neigh_update", "__neigh_update"))  # what waited for the MAC, in whoever's delivery brings that

# Functions that prove a bridge's decision. Which are visible depends on what the compiler inlined or tail-called.
SWITCHING = frozenset(("br_forward", "__br_forward", "br_flood", "br_forward_finish", "br_dev_queue_push_xmit"))
FROM_A_PORT = frozenset(("br_handle_frame", "br_handle_frame_finish", "br_nf_pre_routing_finish"))
FROM_THE_HOST = frozenset(("br_dev_xmit",))
UP_TO_THE_HOST = FROM_A_PORT | {"br_pass_frame_up", "br_netif_receive_skb"}


@lru_cache(4096)  # packets take the same few ways
def own_frames(stack: tuple[str, ...]) -> tuple[str, ...]:
    """The frames since the packet was last received, innermost first, without compiler suffixes (.isra.0, .part.0)."""
    own: list[str] = []
    for frame in stack:
        name = frame.partition(".")[0]
        if name in _RECEIVING or name in _LETTING_GO:
            if own:
                break
        elif not name.startswith(_TRACING):
            own.append(name)
    return tuple(own)
