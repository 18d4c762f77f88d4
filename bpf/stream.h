/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which packets a journey begins with where real traffic is followed: those that match a filter expression, and what belongs
 * to the same flow as one that is followed: the way back, on both sides of NAT, and ICMP errors about either.
 *
 * CHOSEN 1: of these only the packets from or to an address in the map `addresses`
 * tracer/kernel/expression.py makes filter_expression() and writes it over the mark below. */
#pragma once

#define FLOWS 8192

/* One direction of a flow, as packets of it look at some place. ICMP has its identifier as source port. */
struct flow {
  struct address source, destination;
  u16 source_port, destination_port; /* network order */
  u32 transport;
};

BPF_TABLE("lru_hash", struct flow, u8, flows, FLOWS); /* whose packets are followed, too */
BPF_ARRAY(any_flows, u64, 1);

/* What was sent and is not followed: how many packets, by CPU, and now and then what one looked like. Python maps both. */
#define CPUS 1024
#define SAMPLES 64
#define SAMPLE_EACH 64
struct sample {
  u16 protocol; /* EtherType, host order */
  u8 l3[40];
  u8 l4[4];
  u8 padding[2];
};
BPF_F_TABLE("array", int, u64, passed, CPUS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", int, struct sample, samples, SAMPLES, BPF_F_MMAPABLE);

static __always_inline void count_passed(const u8 *l3, u16 protocol) {
  int index = bpf_get_smp_processor_id() & (CPUS - 1);
  u64 *count = passed.lookup(&index);
  if (!count || ((*count)++ & (SAMPLE_EACH - 1)))
    return;
  index = (*count / SAMPLE_EACH) & (SAMPLES - 1);
  struct sample *s = samples.lookup(&index);
  struct headers h;
  if (!s)
    return;
  get_headers(l3, protocol, &h);
  s->protocol = be16(protocol);
  __builtin_memcpy(s->l3, h.l3, sizeof(s->l3));
  __builtin_memcpy(s->l4, h.l4, sizeof(s->l4));
}

/* FILTER EXPRESSION */

/* False for what has no flow: other protocols than IP, and fragments behind the first. `back`: the other direction. */
static __always_inline bool get_flow(const struct headers *h, u16 protocol, bool back, struct flow *f) {
  bool v4 = protocol == be16(ETH_P_IP);
  __builtin_memset(f, 0, sizeof(*f));
  if (!v4 && protocol != be16(ETH_P_IPV6))
    return false;
  if (v4 && is_later_fragment(h))
    return false;
  f->transport = transport_of(h, protocol);
  u16 first = *(u16 *)&h->l4[0], second = *(u16 *)&h->l4[2];
  if (f->transport == IPPROTO_ICMP || f->transport == IPPROTO_ICMPV6) {
    if (!is_echo(f->transport, h->l4[0]))
      return false;
    first = second = *(u16 *)&h->l4[4];
  } else if (f->transport != IPPROTO_TCP && f->transport != IPPROTO_UDP) {
    first = second = 0;
  }
  const u8 *source = v4 ? &h->l3[12] : &h->l3[8], *destination = v4 ? &h->l3[16] : &h->l3[24];
  set_address(&f->source, back ? destination : source, v4);
  set_address(&f->destination, back ? source : destination, v4);
  f->source_port = back ? second : first;
  f->destination_port = back ? first : second;
  return true;
}

/* Keep the way back of a followed packet as it looks by now. */
static __always_inline void learn(const struct headers *h, u16 protocol) {
  struct flow f;
  u8 one = 1;
  int zero = 0;
  u64 yes = 1;
  if (!get_flow(h, protocol, true, &f) || flows.lookup(&f))
    return;
  flows.update(&f, &one);
  any_flows.update(&zero, &yes);
}

static __always_inline bool has_flows(void) {
  int zero = 0;
  u64 *flag = any_flows.lookup(&zero);
  return flag && *flag;
}

static __always_inline bool filter_chosen(const u8 *l3, u16 protocol) {
  u8 both[32];
  if (protocol == be16(ETH_P_IP)) {
    bpf_probe_read_kernel(both, 8, l3 + 12);
    return filter_address(both, true) || filter_address(both + 4, true);
  }
  if (protocol == be16(ETH_P_IPV6)) {
    bpf_probe_read_kernel(both, 32, l3 + 8);
    return filter_address(both, false) || filter_address(both + 16, false);
  }
  bpf_probe_read_kernel(both, 14, l3 + 14); /* ARP: sender, then the target behind its MAC */
  return protocol == be16(ETH_P_ARP) && (filter_address(both, true) || filter_address(both + 10, true));
}

/* Might a journey begin here? Decides without the headers, for what nearly every packet of a busy host is. */
static __always_inline bool filter_first(struct sk_buff *skb, const u8 *l3, u16 protocol) {
  return filter_expression(skb, l3, protocol) && (!CHOSEN || filter_chosen(l3, protocol));
}

/* Does it belong to a followed flow, or is it an error about a packet of one? */
static __always_inline bool filter_flow(const u8 *l3, u16 protocol, const struct headers *h) {
  struct flow f;
  if (get_flow(h, protocol, false, &f))
    return flows.lookup(&f) != 0;
  if (f.transport != (protocol == be16(ETH_P_IP) ? IPPROTO_ICMP : IPPROTO_ICMPV6) || !is_error(f.transport, h->l4[0]))
    return false;
  struct headers q;
  get_quoted(l3, protocol, h, &q);
  return get_flow(&q, protocol, true, &f) && flows.lookup(&f) != 0;
}
