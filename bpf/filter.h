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
 * RELAY_PID  of the proxy that makes connections of its own for the probes, 0 without one
 * TOKEN      an ICMP identifier, or the first of TOKEN_PORTS ports, host order
 * ANY_SENDER 1 where the address that the probes leave from is not known yet
 * The map `addresses` has those of both ends, and of who forwards between them. */

#define ECHO_REQUEST (ERRORS == 1 ? 8 : 128)
#define ECHO_REPLY (ERRORS == 1 ? 0 : 129)
#define TCP_FLAGS_AT 13
#define TCP_SYN 2

BPF_HASH(ends, struct endpoint, u8, 8); /* the far ends, and the sender with port 0 */
BPF_TABLE("lru_hash", struct endpoint, u8, translated, 256); /* what NAT made of either, or who a proxy is */
BPF_ARRAY(moved, u64, 1); /* 1: of an end in `translated` not even the port tells that it is ours */

/* The two ends of a packet, which must have a transport header. */
struct ends {
  struct endpoint source, destination;
};

static __always_inline bool get_ends(const struct headers *h, bool v4, struct ends *e) {
  __builtin_memset(e, 0, sizeof(*e));
  if (v4 && is_later_fragment(h))
    return false;
#if TRANSPORT == ERRORS
  if (h->l4[0] != ECHO_REQUEST && h->l4[0] != ECHO_REPLY)
    return false;
  e->source.port = e->destination.port = be16(*(u16 *)&h->l4[4]);
#else
  e->source.port = be16(*(u16 *)&h->l4[0]);
  e->destination.port = be16(*(u16 *)&h->l4[2]);
#endif
  set_address(&e->source.address, v4 ? &h->l3[12] : &h->l3[8], v4);
  set_address(&e->destination.address, v4 ? &h->l3[16] : &h->l3[24], v4);
  return true;
}

/* Is it the identifier of the run, or one of its ports? */
static __always_inline bool is_token(u32 port) { return TRANSPORT == ERRORS ? port == TOKEN : (port & ~(TOKEN_PORTS - 1)) == TOKEN; }

static __always_inline bool is_sender(const struct endpoint *end) {
  struct endpoint key = *end;
  key.port = 0;
  return ANY_SENDER || ends.lookup(&key) != 0;
}

static __always_inline bool is_translated(struct endpoint *end) { return translated.lookup(end) != 0; }
static __always_inline bool is_far_end(struct endpoint *end) { return ends.lookup(end) != 0 || is_translated(end); }

static __always_inline bool is_moved(void) {
  int zero = 0;
  u64 *flag = moved.lookup(&zero);
  return flag && *flag;
}

static __always_inline void learn_ends(struct ends *e) {
  u8 one = 1;
  bool from = is_token(e->source.port) && is_sender(&e->source), to = is_token(e->destination.port) && is_sender(&e->destination);
  if (!from && !is_far_end(&e->source))
    translated.update(&e->source, &one);
  if (!to && !is_far_end(&e->destination))
    translated.update(&e->destination, &one);
  if (!is_token(e->source.port) && !is_token(e->destination.port)) {
    int zero = 0;
    u64 yes = 1;
    moved.update(&zero, &yes);
  }
}

/* A packet of the run: from the sender to the far end, or back, in whatever way they are translated. */
static __always_inline bool filter_ends(const struct headers *h, bool v4) {
  struct ends e;
  if (!get_ends(h, v4, &e))
    return false;
  bool from = is_token(e.source.port), to = is_token(e.destination.port);
#if RELAY_PID
  /* a connection that the proxy opens */
  if ((TRANSPORT != IPPROTO_TCP || h->l4[TCP_FLAGS_AT] == TCP_SYN) && bpf_get_current_pid_tgid() >> 32 == RELAY_PID &&
      ends.lookup(&e.destination)) {
    learn_ends(&e);
    return true;
  }
#endif
  if (!from && !to && !is_moved())
    return false;
#if TRANSPORT == ERRORS
  from = from && h->l4[0] == ECHO_REQUEST;
  to = to && h->l4[0] == ECHO_REPLY;
#endif
  if (to && is_sender(&e.destination)) /* whoever answers */
    return true;
  if ((from && is_sender(&e.source)) || is_translated(&e.source))
    return is_far_end(&e.destination);
  return is_translated(&e.destination) && is_far_end(&e.source);
}

/* An ICMP error is followed when the packet that it quotes would have been. */
static __always_inline bool filter_quoted(const u8 *l3, const struct headers *h, bool v4) {
  struct headers q;
  get_quoted(l3, PROTOCOL, h, &q);
  return q.l3[TRANSPORT_AT] == TRANSPORT && filter_ends(&q, v4);
}

static __always_inline bool filter_neighbor(const u8 *l3, const struct headers *h) {
  u8 target[16];
  bpf_probe_read_kernel(target, 16, l3 + 48);
  /* a solicitation comes from one of the addresses, an advertisement goes to one */
  return filter_address(target, false) && filter_address(h->l4[0] == 135 ? &h->l3[8] : &h->l3[24], false);
}

/* Might a journey begin here, or go on? Decides by one byte, for what nearly every packet of a busy host is. */
static __always_inline bool filter_first(struct sk_buff *skb, const u8 *l3, u16 protocol) {
  if (protocol != PROTOCOL)
    return NEIGHBOR && protocol == NEIGHBOR;
  u8 transport = get_transport(l3);
  return transport == TRANSPORT || transport == ERRORS || (TRANSPORT_AT == 6 && transport == FRAGMENT);
}

/* Keep what a followed packet's ends look like by now: copies of it and its answers will look like that. */
static __always_inline void learn(const struct headers *h, u16 protocol) {
  struct ends e;
  if (protocol == PROTOCOL && h->l3[TRANSPORT_AT] == TRANSPORT && get_ends(h, PROTOCOL == be16(ETH_P_IP), &e))
    learn_ends(&e);
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
  if (is_error(ERRORS, type))
    return filter_quoted(l3, h, v4);
  if (!v4 && (type == 135 || type == 136))
    return filter_neighbor(l3, h);
  return TRANSPORT == ERRORS && filter_ends(h, v4);
}
