/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The only types that cross between the kernel and Python. tracer/model/layout.py is generated from this file by
 * scripts/layout; a test compares the two, and sizes and offsets with what the compiler made of it. Members are sorted by
 * size, so that the compiler adds no padding of its own. */
#pragma once

enum place {
  PLACE_QUEUE,     /* tracepoint net_dev_queue: handed to a device to send */
  PLACE_RECEIVE,   /* tracepoint netif_receive_skb: a device received */
  PLACE_HOOK,      /* netfilter link */
  PLACE_DROP,      /* tracepoint kfree_skb */
  PLACE_CONSUME,   /* tracepoint consume_skb: freed without being a drop */
  PLACE_ROUTE,     /* tracepoints fib_table_lookup, fib6_table_lookup: one table was asked; no skb. The journey is that of
                      the packet that the CPU was at, 0 for none */
  PLACE_FUNCTION,  /* a kernel function begins; which kind, `hook` says */
  PLACE_COUNT,
};

/* What a kernel function is about to do. */
enum function {
  FUNCTION_FORWARD,    /* a bridge sends it, or a copy, out by a port, which is the event's device */
  FUNCTION_FLOOD,      /* a bridge sends it out by all ports: it does not know where the MAC is */
  FUNCTION_SOCKET,     /* a socket takes it */
  FUNCTION_LOCAL,      /* a bridge hands it up to its own device */
  FUNCTION_PROTOCOL,   /* its protocol takes it */
  FUNCTION_NEIGHBOR,   /* its next hop's MAC is looked up, and it waits where that is not known */
};

enum limits {
  PACKET_BYTES = 96,   /* from the network header: IPv6 error, quoted IPv6 header and 8 bytes of what that carried */
  STACK_DEPTH = 32,    /* frames; a FORWARD verdict on bridged traffic lies 25 deep */
  NAME_BYTES = 16,     /* IFNAMSIZ */
  SLOTS = 12,          /* netfilter links at one hook */
  HOOK_BEGINS = 14,    /* instead of a link's slot: nf_hook_slow() begins; at HOOK_ENDS it returns */
  HOOK_TABLE = 15,     /* four slots: a table of iptables-legacy has the packet go on; raw, mangle, filter, security */
  HOOK_ENDS = 19,
};

struct event {
  u64 time;            /* CLOCK_MONOTONIC, ns */
  u64 skb;             /* address; reused by the kernel as soon as it is freed */
  u64 journey;         /* given at first sight, follows the skb through every rewrite */
  u64 caller;          /* at PLACE_DROP who freed it; at PLACE_CONSUME 0; elsewhere the running task */
  u64 conntrack;       /* struct nf_conn, 0 without an entry */
  u64 netns;           /* inode, and above it the lower half of the cookie: an inode is given again, a cookie is not */
  u32 ifindex;         /* skb->dev; at a hook, the device that the packet came by, or goes by where there is no other */
  u32 out_ifindex;     /* at a hook: the device it goes by; 0 where not decided */
  u32 length;          /* skb->len at this place: with the Ethernet header at PLACE_QUEUE */
  u32 reason;          /* enum skb_drop_reason at PLACE_DROP */
  u32 cpu;
  u16 protocol;        /* EtherType, host order */
  u16 captured;        /* bytes of packet[] that are valid */
  u16 depth;           /* frames of the stack that follows the event, 0: none */
  u8 place;
  u8 hook;             /* enum nf_inet_hooks at a hook, enum function at PLACE_FUNCTION */
  u8 family;           /* NFPROTO_* at a hook */
  u8 slot;             /* which of the links at this hook, counted from the first priority, or HOOK_*; nud_state at
                          FUNCTION_NEIGHBOR */
  u8 first;            /* 1: the journey began here */
  u8 conntrack_info;   /* enum ip_conntrack_info */
  u8 ethernet[14];     /* at a device, in a bridge, and at the end where it still has one; zero at hooks */
  u8 name[NAME_BYTES]; /* of ifindex */
  u8 packet[PACKET_BYTES];
  u8 padding[2];
};

/* What follows an event whose depth is not 0. */
struct stack {
  u64 frames[STACK_DEPTH];
};

/* What follows an event at PLACE_HOOK: both tuples of its conntrack entry, as struct nf_conntrack_tuple has them; zero without
 * an entry. Its layout has been the same since Linux 2.6.20: source address (16 bytes), port or ICMP id, l3num, destination
 * address (16), port or ICMP type and code, protonum, direction. */
struct tuples {
  u8 original[40];
  u8 reply[40];
};

/* What packet[] holds at PLACE_ROUTE. Addresses as the map `addresses` has them; ifindex and name of the event are the
 * chosen device's. */
struct lookup {
  u8 source[16];
  u8 destination[16];
  u8 gateway[16];      /* zero without one */
  u32 table;
  u32 error;           /* errno, 0: found */
  u32 in_ifindex;      /* of a packet to forward; 1 (lo) for one of the host's own */
  u32 gateway_family;  /* AF_*, 0 without a gateway */
};

/* Keys of the maps of addresses. */
struct address {
  u8 bytes[16];        /* IPv4 in the first 4, zeros behind */
};

/* One end of a flow. */
struct endpoint {
  struct address address;
  u32 port;            /* or ICMP identifier; host order */
};
