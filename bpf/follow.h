/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From "a packet is here" to an event: is it followed, does a journey begin, what does the place know.
 *
 * The untaken path is what a busy host pays for: it ends at the transport protocol's byte, or, at places where no
 * journey can begin, at `active` being 0. */
#pragma once

#ifndef FOLLOWED
#define FOLLOWED 4096
#endif

struct followed {
  u64 journey;
  u64 identity; /* the skb is another packet now when this differs */
};

BPF_TABLE("lru_hash", u64, struct followed, following, FOLLOWED); /* skb address -> journey */
BPF_ARRAY(active, u64, 1);         /* entries in `following`; an upper bound, since some frees pass unseen */
BPF_PERCPU_ARRAY(current_journey, u64, 1); /* of the packet that the CPU is at; 0 for one that nobody follows, or none */
/* Python maps it: reading it is free. Events that the ring buffer had no room for */
BPF_F_TABLE("array", int, u64, lost, PLACE_COUNT, BPF_F_MMAPABLE);
#ifndef RING_BYTES
#define RING_BYTES (1 << 20)
#endif
BPF_RINGBUF_OUTPUT(events, RING_BYTES / PAGE_SIZE);

static __always_inline u64 is_active(void) {
  int zero = 0;
  u64 *count = active.lookup(&zero);
  return count ? *(volatile u64 *)count : 0;
}

static __always_inline void set_active(s64 change) {
  int zero = 0;
  u64 *count = active.lookup(&zero);
  if (count)
    __sync_fetch_and_add(count, change);
}

static __always_inline void set_current(u64 journey) {
  int zero = 0;
  u64 *current = current_journey.lookup(&zero);
  if (current)
    *current = journey;
}

static __always_inline u64 get_current(void) {
  int zero = 0;
  u64 *current = current_journey.lookup(&zero);
  return current ? *current : 0;
}

static __always_inline void forget(u64 key) {
  if (following.delete(&key) == 0)
    set_active(-1);
}

/* An empty event; null when there is no room, which is counted. */
static __always_inline struct event *reserve(u8 place) {
  int index = place;
  struct event *e = place == PLACE_HOOK ? events.ringbuf_reserve(sizeof(struct event) + sizeof(struct tuples))
                                        : events.ringbuf_reserve(sizeof(struct event) + sizeof(struct stack));
  if (!e) {
    u64 *count = lost.lookup(&index);
    if (count)
      __sync_fetch_and_add(count, 1);
    return 0;
  }
  __builtin_memset(e, 0, sizeof(*e));
  e->time = bpf_ktime_get_ns();
  e->cpu = bpf_get_smp_processor_id();
  e->place = place;
  return e;
}

/* The event of a packet, filled in as far as every place can. */
static __always_inline struct event *new_event(struct sk_buff *skb, const u8 *l3, u64 journey, u8 place) {
  struct event *e = reserve(place);
  if (!e)
    return 0;
  u64 nfct = LOAD(skb, _nfct);
  e->skb = (u64)skb;
  e->journey = journey;
  e->length = LOAD(skb, len);
  e->protocol = be16(LOAD(skb, protocol));
  e->conntrack_info = nfct & 7;
  e->conntrack = nfct & ~7ULL;
  /* headers lie in the linear part, which ends where the paged part of len begins */
  u64 size = (u64)(LOAD(skb, data) + e->length - LOAD(skb, data_len)) - (u64)l3;
  if (size > PACKET_BYTES)
    size = PACKET_BYTES;
  if (bpf_probe_read_kernel(e->packet, size, l3) == 0)
    e->captured = size;
  return e;
}

static __always_inline void set_device(struct event *e, struct net_device *dev) {
  if (!dev)
    return;
  e->ifindex = LOAD(dev, ifindex);
  e->netns = get_netns(dev);
  bpf_probe_read_kernel(e->name, NAME_BYTES, dev->name);
}

#ifdef SHED
/* Under overload whole journeys are left out rather than hops of any. Which, is told from the packet's identity, the same
 * wherever it or a copy of it is seen: nothing need be remembered of those left out, and none begins half-way but one that
 * is under way when the share rises. Python sets the share, of 2^32, that is begun (tracer/kernel/shedding.py). The kernel
 * only brakes, to 0, where a packet that would begin a journey finds half of the ring waiting to be read. BCC has no such
 * question: the loader writes the ring's file descriptor over RING_MARK. */
#define RING_MARK 0x7FFF5109
BPF_F_TABLE("array", int, u64, share, 1, BPF_F_MMAPABLE);

static __always_inline bool is_shed(u64 identity) {
  int zero = 0;
  u64 *begun = share.lookup(&zero);
  return begun && (identity * 0x9E3779B97F4A7C15) >> 32 >= *(volatile u64 *)begun;
}

static __always_inline bool brake(void) {
  int zero = 0;
  u64 *begun = share.lookup(&zero);
  if (!begun || bpf_ringbuf_query((void *)bpf_pseudo_fd(1, RING_MARK), BPF_RB_AVAIL_DATA) < RING_BYTES / 2)
    return false;
  *(volatile u64 *)begun = 0;
  return true;
}
#else
static __always_inline bool is_shed(u64 identity) { return false; }
static __always_inline bool brake(void) { return false; }
#endif

/* The journey of this packet, 0 for a packet that nobody follows. Where `may_begin`, a packet that matches the selection
 * begins one. `watched`: is_active(), which most callers have looked at before. */
static __always_inline u64 get_journey(struct sk_buff *skb, const u8 *l3, bool watched, bool may_begin, u8 *first) {
  u16 protocol = LOAD(skb, protocol);
  u64 key = (u64)skb;
  struct headers h;
#ifdef LIVE
  bool matches = may_begin && filter_first(skb, l3, protocol);
  if (!matches && !watched && !(may_begin && has_flows()))
    return 0;
#else
  if (!filter_first(skb, l3, protocol) || (!watched && !may_begin))
    return 0;
#endif
  get_headers(l3, protocol, &h);
  u64 identity = get_identity(&h, protocol);
  struct followed *known = watched ? following.lookup(&key) : 0;
  if (known && known->identity == identity) {
    learn(&h, protocol);
    return known->journey;
  }
  if (known)
    forget(key);
#ifdef LIVE
  if (!may_begin || !(matches || (has_flows() && filter_flow(l3, protocol, &h))) || is_shed(identity) || brake())
    return 0;
  learn(&h, protocol);
#else
  if (!may_begin || is_shed(identity) || !filter_packet(l3, protocol, &h) || brake())
    return 0;
#endif
  /* unique: no two packets are first seen in one tick of the clock on one CPU, not even in 40 ns on arm64 */
  struct followed begun = {.journey = bpf_ktime_get_ns() << 8 | (bpf_get_smp_processor_id() & 255), .identity = identity};
  following.update(&key, &begun);
  set_active(1);
  *first = 1;
  return begun.journey;
}
