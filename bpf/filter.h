/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which packets a journey begins with: the probe's own, the replies, ICMP errors about them, and the neighbour lookups
 * between their addresses. Decided once, at first sight; from then on the skb is followed whatever is rewritten. */
#pragma once

/* What to follow is compiled in, since every load and compare on the untaken path is paid by all of the host's packets:
 * PROTOCOL   ETH_P_IP or ETH_P_IPV6, as skb->protocol has it
 * NEIGHBOR   ETH_P_ARP in the same order with IPv4; neighbour discovery is ICMPv6, so 0 with IPv6
 * TRANSPORT  of the probes, and TRANSPORT_AT, the offset at which the IP header has it
 * ERRORS     IPPROTO_ICMP or IPPROTO_ICMPV6: who reports errors, and neighbours with IPv6
 * OWN_PID    of the tracer, who makes the probes
 * TOKEN      an ICMP identifier, or the first of TOKEN_PORTS ports, host order */

#define ECHO_REQUEST (ERRORS == 1 ? 8 : 128)
#define ECHO_REPLY (ERRORS == 1 ? 0 : 129)

BPF_HASH(addresses, struct address, u8, 64); /* of both ends, and of who forwards between them */

static __always_inline bool filter_address(const u8 *address, bool v4) {
  struct address key = {};
  __builtin_memcpy(key.bytes, address, 4);
  if (!v4)
    __builtin_memcpy(key.bytes + 4, address + 4, 12);
  return addresses.lookup(&key) != 0;
}

/* Does a transport header belong to the run? */
static __always_inline bool filter_token(const u8 *l4) {
#if TRANSPORT == ERRORS
  return (l4[0] == ECHO_REQUEST || l4[0] == ECHO_REPLY) && be16(*(u16 *)&l4[4]) == TOKEN;
#else
  return (be16(*(u16 *)&l4[0]) & ~(TOKEN_PORTS - 1)) == TOKEN || (be16(*(u16 *)&l4[2]) & ~(TOKEN_PORTS - 1)) == TOKEN;
#endif
}

/* A packet of the run, to or from one of its addresses. */
static __always_inline bool filter_ends(const struct headers *h, bool v4) {
  return filter_token(h->l4) && (filter_address(v4 ? &h->l3[12] : &h->l3[8], v4) ||
                                 filter_address(v4 ? &h->l3[16] : &h->l3[24], v4));
}

/* An ICMP error is followed when the packet that it quotes would have been. */
static __always_inline bool filter_quoted(const u8 *l3, const struct headers *h, bool v4) {
  u32 outer = v4 ? (h->l3[0] & 15) * 4 : 40;
  struct headers q;
  get_headers(l3 + outer + 8, PROTOCOL, &q);
  return q.l3[TRANSPORT_AT] == TRANSPORT && filter_ends(&q, v4);
}

static __always_inline bool filter_neighbor(const u8 *l3, const struct headers *h) {
  u8 target[16];
  bpf_probe_read_kernel(target, 16, l3 + 48);
  /* a solicitation comes from one of the addresses, an advertisement goes to one */
  return filter_address(target, false) && filter_address(h->l4[0] == 135 ? &h->l3[8] : &h->l3[24], false);
}

static __always_inline bool filter_packet(const u8 *l3, u16 protocol, const struct headers *h) {
  bool v4 = protocol == be16(ETH_P_IP);
  u8 type = h->l4[0];
  if (protocol == be16(ETH_P_ARP)) { /* sender and target, both */
    u8 target[4], sender[4];
    __builtin_memcpy(sender, &h->l3[14], 4);
    __builtin_memcpy(target, &h->l3[24], 4);
    return filter_address(sender, true) && filter_address(target, true);
  }
  if (h->l3[TRANSPORT_AT] != ERRORS)
    return h->l3[TRANSPORT_AT] == TRANSPORT && filter_ends(h, v4);
  if (v4 ? (type == 3 || type == 11 || type == 12) : (type >= 1 && type <= 4))
    return filter_quoted(l3, h, v4);
  if (!v4 && (type == 135 || type == 136))
    return filter_neighbor(l3, h);
  return TRANSPORT == ERRORS && filter_ends(h, v4);
}
