/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Readers: they look, and change nothing. */
#pragma once

/* Members of kernel structs. TYPED programs (BTF-typed tracepoints, netfilter programs) may follow kernel pointers with
 * plain loads, at a fraction of the cost of bpf_probe_read_kernel; classic raw tracepoints may not. Only static functions
 * use this: there, BCC's rewriter leaves dereferences alone. Packet bytes have no type and are always read by the helper,
 * which cannot fault. */
#ifdef TYPED
#define LOAD(pointer, member) ((pointer)->member)
#else
#define LOAD(pointer, member) \
  ({ __typeof__((pointer)->member) value_; \
     bpf_probe_read_kernel(&value_, sizeof(value_), &(pointer)->member); value_; })
#endif

#define IFF_EBRIDGE (1 << 1) /* enum netdev_priv_flags */
#define IFF_BRIDGE_PORT (1 << 9)
#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_IPV6 0x86DD
#define FRAGMENT 44
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define be16(x) ((u16)__builtin_bswap16(x))

/* What the filter and the identity of a packet are made from. */
struct headers {
  u8 l3[40];
  u8 l4[16];
} __attribute__((aligned(8))); /* cleared by words */

/* The network header. Its offset is reset on reception only after the first tracepoint. */
static __always_inline u8 *get_l3(struct sk_buff *skb) { return LOAD(skb, head) + LOAD(skb, network_header); }

/* The transport protocol's number of an IP packet; FRAGMENT for an IPv6 fragment. Other extension headers are not walked:
 * probes have none.
 *
 * This one byte is what the untaken path costs most. HEADER_ID is the BTF id of struct iphdr or ipv6hdr: bpf_rdonly_cast
 * (Linux 6.2, a35b9af4ec2c) gives the packet's bytes that type, and a plain load reads them. BCC cannot call such kernel
 * functions, so the loader writes its id over CAST_MARK. */
#define CAST_MARK 0x5108
static u8 *(*cast)(const u8 *bytes, u32 type) = (void *)CAST_MARK; /* called as a helper is */

#ifndef LIVE
static __always_inline u8 get_transport(const u8 *l3) {
  u8 value = 0;
#if defined(TYPED) && defined(HEADER_ID)
  value = cast(l3, HEADER_ID)[TRANSPORT_AT];
#else
  bpf_probe_read_kernel(&value, 1, l3 + TRANSPORT_AT);
#endif
  return value;
}
#endif

static __always_inline bool is_echo(u32 transport, u8 type) {
  return transport == IPPROTO_ICMP ? type == 0 || type == 8 : type == 128 || type == 129;
}

static __always_inline bool is_error(u32 transport, u8 type) {
  return transport == IPPROTO_ICMP ? type == 3 || type == 11 || type == 12 : type >= 1 && type <= 4;
}

static __always_inline void get_headers(const u8 *l3, u16 protocol, struct headers *h) {
  u32 l3_bytes = 40;
  __builtin_memset(h, 0, sizeof(*h));
  if (protocol == be16(ETH_P_IP)) {
    bpf_probe_read_kernel(h->l3, 20, l3);
    l3_bytes = (h->l3[0] & 15) * 4;
  } else {
    bpf_probe_read_kernel(h->l3, 40, l3);
    if (protocol == be16(ETH_P_IPV6) && h->l3[6] == FRAGMENT) { /* the first fragment has the transport's header */
      bpf_probe_read_kernel(h->l4, sizeof(h->l4), l3 + 40);
      if (!(*(u16 *)&h->l4[2] & be16(0xFFF8))) {
        h->l3[6] = h->l4[0];
        l3_bytes = 48;
      }
    }
  }
  if (protocol != be16(ETH_P_ARP))
    bpf_probe_read_kernel(h->l4, sizeof(h->l4), l3 + l3_bytes);
}

/* Of an IP packet, by the headers that get_headers() read. */
static __always_inline u8 transport_of(const struct headers *h, u16 protocol) {
  return h->l3[protocol == be16(ETH_P_IP) ? 9 : 6];
}

/* Is it an IPv4 fragment without the transport's header? */
static __always_inline bool is_later_fragment(const struct headers *h) { return *(u16 *)&h->l3[6] & be16(0x1FFF); }

/* The packet that an ICMP error quotes. */
static __always_inline void get_quoted(const u8 *l3, u16 protocol, const struct headers *h, struct headers *quoted) {
  get_headers(l3 + (protocol == be16(ETH_P_IP) ? (h->l3[0] & 15) * 4 : 40) + 8, protocol, quoted);
}

/* What NAT and forwarding leave alone, to tell a packet from the next one at the same address: the IPv4 id, the transport
 * and of its header ICMP's type, code and sequence, TCP's two numbers, UDP's length and the payload behind it. Never 0. */
static __always_inline u64 get_identity(const struct headers *h, u16 protocol) {
  u64 identity = 1;
  if (protocol == be16(ETH_P_ARP))
    return identity | (u64)*(u16 *)&h->l3[6] << 48 | (u64)*(u32 *)&h->l3[24] << 8;
  if (protocol != be16(ETH_P_IP) && protocol != be16(ETH_P_IPV6))
    return identity | *(u64 *)&h->l3[0] << 8;
  u8 transport = transport_of(h, protocol);
  identity |= (u64)transport << 40;
  if (protocol == be16(ETH_P_IP))
    identity |= (u64)*(u16 *)&h->l3[4] << 48;
  if (transport == IPPROTO_TCP)
    return identity | (u64)(*(u32 *)&h->l4[4] + *(u32 *)&h->l4[8]) << 8;
  if (transport == IPPROTO_UDP) {
    u16 length = *(u16 *)&h->l4[4];
    u32 payload = be16(length) >= 16 ? *(u32 *)&h->l4[8] + *(u32 *)&h->l4[12] : 0;
    return identity | (u64)(length + payload) << 8;
  }
  return identity | (u64)*(u16 *)&h->l4[0] << 24 | (u64)*(u16 *)&h->l4[6] << 8;
}

/* What tracer/topology/netns.py calls a namespace's number. */
static __always_inline u64 get_number(struct net *net) {
#if defined(HAVE_net_net_cookie) && defined(NETNS_COOKIES)
  return LOAD(net, net_cookie) << 32 | LOAD(net, ns.inum);
#else
  return LOAD(net, ns.inum);
#endif
}

static __always_inline u64 get_netns(struct net_device *dev) { return get_number(LOAD(dev, nd_net.net)); }
