/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The programs, by family. Names are those of tracer/kernel/catalogue.py; none has a prefix by which BCC would attach it by
 * itself. */
#include "event.h"
#include "read.h"
#include "address.h"
#ifdef LIVE
#include "expression.h"
#include "stream.h"
#else
#include "filter.h"
#endif
#include "follow.h"

/* A program is loaded several times, each time for another place: the loader writes the place over this number in the
 * bytecode. A netfilter program cannot ask which of its links called it; for the others it saves compiling them twice. */
#define VARIANT_MARK 0x5107
static __always_inline u32 variant(void) {
  u32 value;
  asm volatile("%0 = %1" : "=r"(value) : "i"(VARIANT_MARK));
  return value;
}

/* Does the stack say what a bridge did? It is what an event costs most. */
static __always_inline bool needs_stack(struct net_device *dev, u32 place) {
#ifdef HAVE_net_device_priv_flags
  return dev && LOAD(dev, priv_flags) & (place == PLACE_QUEUE ? IFF_EBRIDGE | IFF_BRIDGE_PORT : IFF_EBRIDGE);
#else
  return true;
#endif
}

/* Each frame costs some 0.1 us. Who took a packet in is among the first ones; what a bridge did, far behind. */
static __always_inline void submit_with_stack(u64 *ctx, struct event *e, u32 frames) {
  int bytes = bpf_get_stack(ctx, (u8 *)e + sizeof(*e), 8 * frames, 0);
  e->depth = bytes > 0 ? (u32)bytes / 8 : 0;
  events.ringbuf_submit(e, 0);
}

/* PLACE_QUEUE: void net_dev_queue(struct sk_buff *); PLACE_RECEIVE: void netif_receive_skb(struct sk_buff *) */
static __always_inline int device_event(u64 *ctx, u32 place) {
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  /* netif_receive_skb comes before the network header is reset; data points to it there */
  const u8 *l3 = place == PLACE_RECEIVE ? LOAD(skb, data) : get_l3(skb);
  u8 first = 0;
  bool watched = is_active();
  if (watched)
    set_current(0); /* the CPU has another packet now, or hands this one over to a queue */
  u64 journey = get_journey(skb, l3, watched, true, &first);
#ifdef LIVE
  if (!journey && place == PLACE_QUEUE)
    count_passed(l3, LOAD(skb, protocol));
#endif
  if (!journey)
    return 0;
  if (place == PLACE_RECEIVE)
    set_current(journey);
  struct event *e = new_event(skb, l3, journey, place);
  if (!e)
    return 0;
  e->first = first;
  e->caller = bpf_get_current_task();
  set_device(e, LOAD(skb, dev));
  bpf_probe_read_kernel(e->ethernet, sizeof(e->ethernet), LOAD(skb, head) + LOAD(skb, mac_header));
  if (needs_stack(LOAD(skb, dev), place))
    submit_with_stack(ctx, e, STACK_DEPTH);
  else
    events.ringbuf_submit(e, 0);
  return 0;
}

int on_device(u64 *ctx) { return device_event(ctx, variant()); }

/* PLACE_DROP: void kfree_skb(struct sk_buff *, void *location, enum skb_drop_reason), the reason since Linux 5.17
 * (c504e5c2f964); PLACE_CONSUME: void consume_skb(struct sk_buff *) */
static __always_inline int end_event(u64 *ctx, u32 place) {
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  u8 first;
  if (!is_active())
    return 0;
  const u8 *l3 = get_l3(skb);
  u64 journey = get_journey(skb, l3, true, false, &first);
  if (!journey)
    return 0;
  /* before the event is reserved: verifiers before Linux 6.4 would think it null, and leaked, in a second look behind that */
  forget((u64)skb);
  set_current(0);
  struct event *e = new_event(skb, l3, journey, place);
  if (!e)
    return 0;
  set_device(e, LOAD(skb, dev));
  bpf_probe_read_kernel(e->ethernet, sizeof(e->ethernet), LOAD(skb, head) + LOAD(skb, mac_header));
  if (place == PLACE_DROP) { /* known when it is loaded: consume_skb has no such arguments, and the verifier skips this */
    e->caller = ctx[1];
#ifdef HAVE_reason
    e->reason = ctx[2];
#endif
  }
  submit_with_stack(ctx, e, place == PLACE_DROP ? STACK_DEPTH : STACK_DEPTH / 2);
  return 0;
}

int on_end(u64 *ctx) { return end_event(ctx, variant()); }

static __always_inline void set_tuples(struct tuples *t, u64 conntrack) {
  __builtin_memset(t, 0, sizeof(*t));
#ifdef HAVE_nf_conn
  const u8 *hashes = (u8 *)conntrack + __builtin_offsetof(struct nf_conn, tuplehash);
  const u32 size = sizeof(((struct nf_conn *)0)->tuplehash[0]);
  if (conntrack) { /* each behind its struct hlist_nulls_node: two pointers */
    bpf_probe_read_kernel(t->original, sizeof(t->original), hashes + 16);
    bpf_probe_read_kernel(t->reply, sizeof(t->reply), hashes + size + 16);
  }
#endif
}

static __always_inline void hook_event(struct sk_buff *skb, struct nf_hook_state *state, u32 slot) {
  u8 hook = LOAD(state, hook), first = 0;
  const u8 *l3 = get_l3(skb);
  /* journeys begin at hooks too: the host's own packets in OUTPUT, copies of a bridge's flood in FORWARD, what fragments
     were put together to behind that */
  u64 journey = get_journey(skb, l3, is_active(), true, &first);
  if (!journey)
    return;
  set_current(journey);
  struct event *e = new_event(skb, l3, journey, PLACE_HOOK);
  if (!e)
    return;
  struct net_device *in = LOAD(state, in), *out = LOAD(state, out);
  e->first = first;
  e->caller = bpf_get_current_task();
  e->hook = hook;
  e->family = LOAD(state, pf);
  e->slot = slot;
  set_device(e, in ? in : out);
  e->netns = get_number(LOAD(state, net));
  if (out)
    e->out_ifindex = LOAD(out, ifindex);
  set_tuples((struct tuples *)(e + 1), e->conntrack);
  events.ringbuf_submit(e, 0);
}

#ifdef HAVE_bpf_nf_ctx
/* A netfilter link; the variant is the slot. */
int on_hook(struct bpf_nf_ctx *ctx) {
  hook_event(ctx->skb, ctx->state, variant());
  return 1; /* NF_ACCEPT: an observer never drops */
}
#endif

#ifdef CHAIN_MARK
/* The kernel is about to run a chain of nftables: unsigned int nft_do_chain_ipv4(void *chain, struct sk_buff *,
 * const struct nf_hook_state *), and _ipv6. Ours have nothing in them and stand where links would: CHAIN_MARK is what their
 * names begin with (tracer/kernel/own_chains.py), a letter for the slot comes behind. */
int on_chain(u64 *ctx) {
  const u8 *name;
  struct {
    u64 mark;
    u8 slot[8];
  } found = {};
  bpf_probe_read_kernel(&name, sizeof(name), (u8 *)ctx[FIRST_AT] + CHAIN_NAME);
  bpf_probe_read_kernel(&found, 9, name);
  if (found.mark == CHAIN_MARK)
    hook_event((struct sk_buff *)ctx[SECOND_AT], (struct nf_hook_state *)ctx[THIRD_AT], found.slot[0] - 'a');
  return 0;
}
#endif

#ifdef RESULT_AT
/* What a function has a packet pass, as it begins and as it returns; the variant is HOOK_BEGINS or HOOK_ENDS. It returns 1
 * where the packet goes on; else it may be freed by then. STACK_AT: at a kprobe on its return the arguments are gone, and its
 * place on the stack leads back to what was kept of them. */
struct call {
  struct sk_buff *skb;
  struct nf_hook_state *state;
  u64 slot;
};

#ifdef STACK_AT
BPF_TABLE("lru_hash", u64, struct call, calls, 1024);

static __always_inline bool get_call(u64 *ctx, bool ends, struct call *call) {
  u64 place = ctx[STACK_AT];
  if (!ends) {
    calls.update(&place, call);
    return true;
  }
  place -= RETURN_BYTES;
  struct call *known = calls.lookup(&place);
  if (!known)
    return false;
  *call = *known;
  calls.delete(&place);
  return true;
}
#else
static __always_inline bool get_call(u64 *ctx, bool ends, struct call *call) { return true; }
#endif

/* All that is registered at a hook: int nf_hook_slow(struct sk_buff *, struct nf_hook_state *, const struct
 * nf_hook_entries *, unsigned int). As if there were two links, in front of everything and behind everything. */
int on_whole_hook(u64 *ctx) {
  bool ends = variant() == HOOK_ENDS;
  if (ends && (s32)ctx[RESULT_AT] != 1)
    return 0;
  struct call call = {(struct sk_buff *)ctx[FIRST_AT], (struct nf_hook_state *)ctx[SECOND_AT]};
  if (!get_call(ctx, ends, &call))
    return 0;
  u8 family = LOAD(call.state, pf);
  if (family == 2 || family == 10) /* NFPROTO_IPV4, NFPROTO_IPV6: others have hooks too */
    hook_event(call.skb, call.state, ends ? HOOK_ENDS : HOOK_BEGINS);
  return 0;
}
#endif

#ifdef TABLE_AT
/* Behind a table of iptables-legacy: unsigned int ipt_do_table(void *table, struct sk_buff *, const struct nf_hook_state *),
 * and ip6t_do_table; before Linux 5.16 the table comes last. TABLE_NAME is the offset of xt_table.name. Where the packet does
 * not go on there is no event, as at a link; and none for nat, which only a connection's first packets pass. */
int on_table(u64 *ctx) {
  bool ends = variant() == HOOK_ENDS;
  if (ends && (u32)ctx[TABLE_RESULT_AT] != 1) /* NF_ACCEPT */
    return 0;
  u8 name = 0;
#ifdef STACK_AT
  if (!ends)
#endif
    bpf_probe_read_kernel(&name, sizeof(name), (u8 *)ctx[TABLE_AT] + TABLE_NAME);
  u64 slot = name == 'r' ? 0 : name == 'm' ? 1 : name == 'f' ? 2 : name == 's' ? 3 : 4;
  struct call call = {(struct sk_buff *)ctx[SKB_AT], (struct nf_hook_state *)ctx[STATE_AT], HOOK_TABLE + slot};
  if (get_call(ctx, ends, &call) && ends && call.slot < HOOK_ENDS) /* the slot behind the tables': nat */
    hook_event(call.skb, call.state, call.slot);
  return 0;
}
#endif

#ifdef FUNCTIONS
/* PLACE_FUNCTION: a kernel function begins; the variant is its kind. Copies that a bridge makes, and what fragments were put
 * together to, are first seen here. PORT_DEV is the offset of net_bridge_port.dev, which only the bridge's types tell. */
#ifdef PORT_DEV
struct bridge_port {
  u8 before[PORT_DEV];
  struct net_device *dev;
};
#endif

static __always_inline void function_event(u64 *ctx, u32 kind, struct sk_buff *skb, u8 *argument) {
  bool bridge = kind == FUNCTION_FORWARD || kind == FUNCTION_FLOOD || kind == FUNCTION_LOCAL;
  u8 first = 0;
  const u8 *l3 = get_l3(skb);
  bool may_begin = kind != FUNCTION_FLOOD && kind != FUNCTION_LOCAL && kind != FUNCTION_NEIGHBOR;
  u64 journey = get_journey(skb, l3, is_active(), may_begin, &first);
  if (!journey)
    return;
  struct event *e = new_event(skb, l3, journey, PLACE_FUNCTION);
  if (!e)
    return;
  e->first = first;
  e->caller = bpf_get_current_task();
  e->hook = kind;
  if (kind == FUNCTION_NEIGHBOR)
    e->slot = LOAD((struct neighbour *)argument, nud_state);
#ifdef PORT_DEV
  if (kind == FUNCTION_FORWARD)
    set_device(e, LOAD((struct bridge_port *)argument, dev));
  else
#endif
    set_device(e, LOAD(skb, dev));
  if (bridge) {
    bpf_probe_read_kernel(e->ethernet, sizeof(e->ethernet), LOAD(skb, head) + LOAD(skb, mac_header));
    submit_with_stack(ctx, e, STACK_DEPTH);
  } else {
    events.ringbuf_submit(e, 0);
  }
}

int on_function(u64 *ctx) {
  u32 kind = variant();
  u8 *argument = (u8 *)ctx[FIRST_AT];
  bool alone = kind == FUNCTION_LOCAL || kind == FUNCTION_PROTOCOL; /* it gets the packet, and nothing before it */
  function_event(ctx, kind, (struct sk_buff *)(alone ? ctx[FIRST_AT] : ctx[SECOND_AT]), argument);
  return 0;
}
#endif

/* Is this lookup for a packet that is followed, for one of the tracer's own that is just being made or a proxy's, or for an
 * answer by a program? */
static __always_inline bool filter_lookup(const u8 *ports, struct lookup *found) {
#ifdef LIVE
  return get_current() != 0;
#else
  u32 pid = bpf_get_current_pid_tgid() >> 32;
  bool own = TRANSPORT != ERRORS && (is_token(be16(*(u16 *)&ports[0])) || is_token(be16(*(u16 *)&ports[2])));
  if (!get_current() && !own && pid != OWN_PID && !(RELAY_PID && pid == RELAY_PID))
    return false;
  return addresses.lookup((struct address *)found->source) || addresses.lookup((struct address *)found->destination);
#endif
}

/* PLACE_ROUTE: void fib_table_lookup(u32 table, const struct flowi4 *, const struct fib_nh_common *, int err);
 * void fib6_table_lookup(const struct net *, const struct fib6_result *, struct fib6_table *, const struct flowi6 *).
 * Only while a probe is under way. */
static __always_inline int route_event(u64 *ctx, u16 protocol, const u8 *ports, struct fib_nh_common *hop,
                                       struct lookup *found) {
  if (!filter_lookup(ports, found))
    return 0;
  struct event *e = reserve(PLACE_ROUTE);
  if (!e)
    return 0;
  e->protocol = protocol;
  e->journey = get_current();
  e->caller = bpf_get_current_task();
  if (hop) {
    set_device(e, LOAD(hop, nhc_dev));
    found->gateway_family = LOAD(hop, nhc_gw_family);
    if (found->gateway_family)
      bpf_probe_read_kernel(found->gateway, 16, hop->nhc_gw);
  }
  __builtin_memcpy(e->packet, found, sizeof(*found));
  e->captured = sizeof(*found);
  submit_with_stack(ctx, e, STACK_DEPTH);
  return 0;
}

int on_route(u64 *ctx) {
  struct lookup found = {};
  u8 ports[8] = {};
  struct flowi4 *flow = (struct flowi4 *)ctx[1];
  found.table = ctx[0];
  found.error = -(s32)ctx[3];
  found.in_ifindex = LOAD(flow, __fl_common.flowic_iif);
  bpf_probe_read_kernel(found.source, 4, &flow->saddr);
  bpf_probe_read_kernel(found.destination, 4, &flow->daddr);
  bpf_probe_read_kernel(ports, 4, flow->uli);
  return route_event(ctx, ETH_P_IP, ports, (struct fib_nh_common *)ctx[2], &found);
}

#ifdef HAVE_fib6_result
int on_route6(u64 *ctx) {
  struct lookup found = {};
  u8 ports[8] = {};
  struct fib6_result *result = (struct fib6_result *)ctx[1];
  struct flowi6 *flow = (struct flowi6 *)ctx[3];
  found.table = LOAD((struct fib6_table *)ctx[2], tb6_id);
  found.error = LOAD(result, fib6_flags) & 0x0200 /* RTF_REJECT */ ? 101 /* ENETUNREACH */ : 0;
  found.in_ifindex = LOAD(flow, __fl_common.flowic_iif);
  bpf_probe_read_kernel(found.source, 16, flow->saddr);
  bpf_probe_read_kernel(found.destination, 16, flow->daddr);
  bpf_probe_read_kernel(ports, 4, flow->uli);
  return route_event(ctx, ETH_P_IPV6, ports, (struct fib_nh_common *)LOAD(result, nh), &found);
}
#endif
