"""Why the kernel freed a packet, in words: its own name for the reason, and the function in which it happened.

Names come from this kernel's BTF (enum skb_drop_reason, include/net/dropreason-core.h); numbers move between kernels, and
a name without words here is still told. Reasons of a subsystem have its number in the upper 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping

from tracer.model.probes import SUBSYSTEM_SHIFT

NO_REASONS = "this kernel gives no reasons"  # before Linux 5.17
UNSAID = (None, "NOT_SPECIFIED", NO_REASONS)

_TCP_STRAY = "it does not fit the TCP connection that it is for"
_TCP_KEY = "its TCP authentication is not what the socket expects"
WORDS = {
    # sockets and transport
    "NO_SOCKET": "no socket wanted it",
    "SOCKET_CLOSE": "its socket was closed",
    "SOCKET_FILTER": "a filter that its socket has attached refused it",
    "SOCKET_RCVBUFF": "its socket's receive buffer is full: the program does not read fast enough",
    "SOCKET_BACKLOG": "its socket's backlog is full: the program does not read fast enough",
    "PROTO_MEM": "the memory for this protocol's sockets is used up",
    "TCP_CSUM": "its TCP checksum is wrong",
    "UDP_CSUM": "its UDP checksum is wrong",
    "ICMP_CSUM": "its ICMP checksum is wrong",
    "IP_CSUM": "its IP checksum is wrong",
    "SKB_CSUM": "its checksum is wrong",
    "TCP_LISTEN_OVERFLOW": "the program accepts connections too slowly: its queue of new ones is full",
    "TCP_FLAGS": "its TCP flags make no sense together",
    "TCP_RESET": "it is a valid reset: it ended its connection",
    "TCP_CLOSE": "its TCP connection is closed",
    "TCP_INVALID_SYN": "it opens a TCP connection that is open",
    "TCP_MINTTL": "its time to live is below what its socket demands",
    "TCP_ZEROWINDOW": "the receiver's TCP window is closed",
    "TCP_ABORT_ON_DATA": "data came for a TCP connection that was closed with data unread",
    "TCP_FASTOPEN": "it does not belong to the TCP Fast Open request",
    "TCP_OFOMERGE": "its data are in the queue already",
    "TCP_OLD_DATA": "its data were received before",
    "TCP_OFO_QUEUE_PRUNE": "TCP threw out-of-order data away for lack of memory",
    "TCP_OFO_DROP": "TCP threw out-of-order data away for lack of memory",
    **dict.fromkeys(("TCP_OVERWINDOW", "TCP_RFC7323_PAWS", "TCP_RFC7323_PAWS_ACK", "TCP_RFC7323_TW_PAWS",
                     "TCP_RFC7323_TSECR", "TCP_OLD_SEQUENCE", "TCP_INVALID_SEQUENCE", "TCP_INVALID_END_SEQUENCE",
                     "TCP_INVALID_ACK_SEQUENCE", "TCP_OLD_ACK", "TCP_TOO_OLD_ACK", "TCP_ACK_UNSENT_DATA"), _TCP_STRAY),
    **dict.fromkeys(("TCP_AUTH_HDR", "TCP_MD5NOTFOUND", "TCP_MD5UNEXPECTED", "TCP_MD5FAILURE", "TCP_AONOTFOUND",
                     "TCP_AOUNEXPECTED", "TCP_AOKEYNOTFOUND", "TCP_AOFAILURE"), _TCP_KEY),
    # firewalls and policies
    "NETFILTER_DROP": "a firewall rule or a chain's policy said DROP",
    "XFRM_POLICY": "an IPsec policy does not let it pass",
    "BPF_CGROUP_EGRESS": "a BPF program of the sender's cgroup refused it",
    "SECURITY_HOOK": "a security module (SELinux, AppArmor, ...) refused it",
    "XDP": "an XDP program dropped it",
    "TC_INGRESS": "a tc filter on the way in dropped it",
    "TC_EGRESS": "a tc filter on the way out dropped it",
    "TC_CHAIN_NOTFOUND": "a tc filter jumps to a chain that does not exist",
    "TC_RECLASSIFY_LOOP": "tc filters send it round in circles",
    "TC_COOKIE_ERROR": "a tc filter's chain was lost on the way to the hardware and back",
    "TAP_FILTER": "a filter of the tun/tap device refused it",
    "TAP_TXFILTER": "the tap device's address filter refused it",
    "PACKET_SOCK_ERROR": "a packet socket could not take it",
    "PSP_INPUT": "PSP encryption refused it on the way in",
    "PSP_OUTPUT": "PSP encryption refused it on the way out",
    # IP
    "IP_INHDR": "its IP header is not valid",
    "IP_INADDRERRORS": "it may not be forwarded from here, or its address has no place here",
    "IP_INNOROUTES": "no route leads on from here",
    "IP_OUTNOROUTES": "no route leads on from here",
    "IP_RPFILTER": "the reverse path filter expects its source on another device",
    "IP_LOCAL_SOURCE": "its source is an address of this very host",
    "IP_INVALID_SOURCE": "its source is an address that no packet may come from",
    "IP_LOCALNET": "a loopback address (127.0.0.0/8) came in from outside",
    "IP_INVALID_DEST": "its destination is an address that no packet may go to",
    "IP_NOPROTO": "nothing here takes its transport protocol",
    "UNHANDLED_PROTO": "the network layer has no handler for it",
    "INVALID_PROTO": "its protocol is not allowed here",
    "IPV6DISABLED": "IPv6 is turned off on this device",
    "IPV6_BAD_EXTHDR": "an IPv6 extension header is not valid",
    **dict.fromkeys(("IPV6_NDISC_FRAG", "IPV6_NDISC_HOP_LIMIT", "IPV6_NDISC_BAD_CODE", "IPV6_NDISC_BAD_OPTIONS"),
                    "it is not a valid message of neighbour discovery"),
    "IPV6_NDISC_NS_OTHERHOST": "it asks for the MAC of another host",
    "UNICAST_IN_L2_MULTICAST": "it is for one address, but its frame was for a group",
    "PKT_TOO_BIG": "it is larger than the next device takes",
    "PKT_TOO_SMALL": "it is shorter than its headers say",
    "HDR_TRUNC": "it is shorter than its headers",
    "DUP_FRAG": "this fragment was received already",
    "FRAG_REASM_TIMEOUT": "its other fragments did not come in time",
    "FRAG_TOO_FAR": "its fragments are too far apart",
    "IP_TUNNEL_ECN": "a tunnel's ECN bits contradict it",
    "TUNNEL_TXINFO": "the tunnel device was not told where to send it",
    # neighbours and frames
    "NEIGH_FAILED": "nobody answered for the next hop's address",
    "NEIGH_QUEUEFULL": "too many packets waited for the next hop's MAC address",
    "NEIGH_CREATEFAIL": "the neighbour table took no further entry",
    "NEIGH_DEAD": "the next hop's neighbour entry was being deleted",
    "NEIGH_HH_FILLFAIL": "the next hop's MAC address could not be written into it",
    "OTHERHOST": "it is addressed to another host's MAC",
    "MAC_INVALID_SOURCE": "its source MAC is not valid",
    "MAC_IEEE_MAC_CONTROL": "it is a frame of the link itself, which no bridge passes on",
    "LOCAL_MAC": "its source MAC is the device's own",
    "ARP_PVLAN_DISABLE": "the answer would go out by the device that the ARP request came by",
    "BRIDGE_INGRESS_STP_STATE": "the bridge's port takes no frames in the state that it is in",
    "NO_TX_TARGET": "the bridge had no port to send it out by",
    "VXLAN_INVALID_HDR": "its VXLAN header is not valid",
    "VXLAN_VNI_NOT_FOUND": "no VXLAN device here has its network number",
    "VXLAN_ENTRY_EXISTS": "its source MAC is known elsewhere already",
    # devices and queues
    "DEV_READY": "the device at the other end is not up",
    "DEV_HDR": "its link header could not be written or read",
    "FULL_RING": "the device's queue is full",
    "QDISC_DROP": "the device's queue dropped it",
    "QDISC_OVERLIMIT": "the device's queue is full",
    "QDISC_CONGESTED": "the device's queue drops packets to signal congestion",
    "CAKE_FLOOD": "the device's queue (cake) is full of its flow",
    "FQ_BAND_LIMIT": "the device's queue (fq) is full",
    "FQ_HORIZON_LIMIT": "its send time is too far ahead for the device's queue (fq)",
    "FQ_FLOW_LIMIT": "the device's queue (fq) is full of its flow",
    "DUALPI2_STEP_DROP": "the device's queue (dualpi2) drops packets to signal congestion",
    "CPU_BACKLOG": "its CPU's backlog is full (net.core.netdev_max_backlog)",
    "QUEUE_PURGE": "the queue that it waited in was emptied",
    "RECURSION_LIMIT": "it went through too many devices in a row: they may form a loop",
    # memory
    "NOMEM": "there was no memory for it",
    "PFMEMALLOC": "memory is so short that its socket may not have it",
    "SKB_GSO_SEG": "it could not be cut into segments",
    "SKB_UCOPY_FAULT": "its data could not be copied from or to the program",
}

# What a rule hands to a program (NFQUEUE) is freed in the first where none takes it, in the others where it says so.
QUEUES = ("nf_queue", "nf_reinject", "nfqnl_reinject")

# Where it happened. Functions without words are told by their name alone.
_PLACES = {
    "on its way into a bridge": ("br_handle_frame",),
    "where the bridge decides": ("br_handle_frame_finish", "br_forward", "__br_forward", "br_flood"),
    "on its way out of a bridge's port": ("br_dev_queue_push_xmit", "br_nf_dev_queue_xmit", "br_forward_finish"),
    "on its way through a veth pair": ("veth_xmit", "__dev_forward_skb2", "__dev_forward_skb", "dev_forward_skb"),
    "on its way into a device": ("__netif_receive_skb_core", "enqueue_to_backlog"),
    "on its way out by a device": ("__dev_queue_xmit", "__dev_xmit_skb", "dev_hard_start_xmit", "validate_xmit_skb",
                                   "sch_handle_egress", "noop_enqueue"),
    "where IP begins": ("ip_rcv_core", "ip_rcv", "ip6_rcv_core", "ipv6_rcv"),
    "in routing": ("ip_rcv_finish_core", "ip_rcv_finish", "ip_error", "ip6_pkt_drop", "ip6_pkt_discard", "ip6_pkt_prohibit",
                   "ip6_pkt_discard_out", "ip6_pkt_prohibit_out", "dst_discard_out", "dst_discard"),
    "in forwarding": ("ip_forward", "ip6_forward"),
    "in fragmenting": ("ip_fragment", "ip_do_fragment", "ip6_fragment", "ip_finish_output", "ip6_finish_output"),
    "in netfilter": ("nf_hook_slow", "nft_do_chain", "ipt_do_table", "ip6t_do_table", "nf_hook_slow_list", *QUEUES),
    "where neighbours are looked up": ("neigh_invalidate", "neigh_timer_handler", "neigh_event_send", "__neigh_event_send",
                                       "ip_finish_output2", "ip6_finish_output2", "neigh_destroy", "arp_error_report",
                                       "ndisc_error_report"),
    "in TCP": ("tcp_v4_rcv", "tcp_v6_rcv", "tcp_rcv_state_process", "tcp_conn_request"),
    "in UDP": ("udp_rcv", "__udp4_lib_rcv", "udpv6_rcv", "__udp6_lib_rcv", "udp_queue_rcv_skb", "udp_queue_rcv_one_skb",
               "udpv6_queue_rcv_skb", "udpv6_queue_rcv_one_skb", "__udp_enqueue_schedule_skb"),
    "in ICMP": ("icmp_rcv", "icmpv6_rcv", "icmp_echo"),
    "in ARP": ("arp_rcv", "arp_process"),
    "at a socket": ("sock_queue_rcv_skb_reason", "__sock_queue_rcv_skb", "raw_rcv", "rawv6_rcv", "packet_rcv", "tpacket_rcv",
                    "sk_filter_trim_cap"),
    "where fragments are put together": ("ip_defrag", "inet_frag_destroy", "inet_frag_rbtree_purge", "ipv6_frag_rcv",
                                         "ip_expire", "ip6frag_expire_frag_queue"),
}
PLACES = {function: words for words, functions in _PLACES.items() for function in functions}

# What a drop without a reason means where it happened in this function: there it has but one.
_NOBODY = WORDS["NEIGH_FAILED"]
IMPLIED = {
    "neigh_invalidate": _NOBODY, "neigh_timer_handler": _NOBODY, "arp_error_report": _NOBODY, "ndisc_error_report": _NOBODY,
    "ip_error": "no route leads on, a route refuses it, or nothing may be forwarded from here",
    **dict.fromkeys(("dst_discard_out", "dst_discard"), "a route throws it away, as a blackhole does"),
    "ip6_pkt_prohibit": "a route prohibits it", "ip6_pkt_discard": "no route leads on from here",
    "ip6_pkt_drop": "no route leads on from here, or one refuses it",
    "br_handle_frame": WORDS["BRIDGE_INGRESS_STP_STATE"],
    "br_dev_queue_push_xmit": "it is larger than the port takes, or the port is down",
    "br_nf_dev_queue_xmit": "it is larger than the port takes",
    "ip6_fragment": WORDS["PKT_TOO_BIG"], "ip_fragment": WORDS["PKT_TOO_BIG"],
    "br_handle_frame_finish": "the bridge had no port that may send it",
    "__br_forward": "the bridge had no port that may send it",
    "__dev_forward_skb2": "it is larger than the other end of the pair takes, or that is down",
    "__dev_forward_skb": "it is larger than the other end of the pair takes, or that is down",
    **dict.fromkeys(("nf_hook_slow", "nft_do_chain", "ipt_do_table", "ip6t_do_table"), WORDS["NETFILTER_DROP"]),
    "ip_rcv_core": "its frame or its header is not for this host, or not valid",
    "ip_forward": "it may not be forwarded from here", "ip6_forward": "it may not be forwarded from here",
    "sk_filter_trim_cap": WORDS["SOCKET_FILTER"],
    **dict.fromkeys(("tcp_v4_rcv", "tcp_v6_rcv", "__udp4_lib_rcv", "__udp6_lib_rcv"),
                    "no socket wanted it, or its checksum is wrong"),
    "__udp_enqueue_schedule_skb": WORDS["SOCKET_RCVBUFF"], "udp_queue_rcv_one_skb": WORDS["SOCKET_RCVBUFF"],
    "udpv6_queue_rcv_one_skb": WORDS["SOCKET_RCVBUFF"],
    "noop_enqueue": "the device is down",
    "nf_queue": "no program reads the queue that a rule put it into, or the queue is full",
    **dict.fromkeys(QUEUES[1:], "the program that reads a rule's queue dropped it"),
}


def name(reason: int, reasons: Mapping[int, str]) -> str:
    """The kernel's name of a reason; for one of a subsystem (Open vSwitch, Wi-Fi), whose names are not in the kernel's own
    enum, the subsystem and the number."""
    if not reasons:
        return NO_REASONS
    number = reason & ((1 << SUBSYSTEM_SHIFT) - 1)
    if number == reason:
        return reasons.get(reason, str(reason))
    return f"{reasons.get(reason - number, f'subsystem {reason >> SUBSYSTEM_SHIFT}')} reason {number}"


def words(reason: str, function: str | None) -> str:
    """What the reason means, for a person; "" where nothing is known."""
    if reason in UNSAID:
        return IMPLIED.get(function or "", "")
    return WORDS.get(reason, "")


def place(function: str | None) -> str:
    """"in routing (ip_error)"; "" without a function."""
    if not function:
        return ""
    return f"{PLACES[function]} ({function})" if function in PLACES else f"in {function}()"
