/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the C that tracer/kernel/expression.py makes of a filter expression stands on. Offsets are the frame's, from its
 * Ethernet header on, wherever the packet is seen: a tag that the kernel took out of the frame counts as in it where the
 * expression asks for tags, and as absent where it does not, as in tcpdump. */
#pragma once

/* A window is where a few bytes of the packet can be read at constant offsets, WINDOW_BYTES at most. BYTES_ID is the BTF id
 * of a struct that begins with an array of so many bytes: with bpf_rdonly_cast (read.h) the window is the packet itself. */
#define WINDOW_BYTES 64
#if defined(TYPED) && defined(BYTES_ID)
#define WINDOW(name, size) const u8 *name
#define LOOK(name, address, size) name = cast(address, BYTES_ID)
#else
#define WINDOW(name, size) u8 name[size] __attribute__((aligned(8)))
#define LOOK(name, address, size) bpf_probe_read_kernel(name, size, address)
#endif

#define is_vlan(protocol) ((protocol) == be16(0x8100) || (protocol) == be16(0x88A8))

/* Is the frame's VLAN tag in members of the skb? Those are vlan_proto and vlan_tci. */
static __always_inline bool has_tag(struct sk_buff *skb) {
#if defined(HAVE_sk_buff_vlan_all) /* Linux 6.2 (354259fa73e2) */
  return LOAD(skb, vlan_all) != 0;
#elif defined(HAVE_sk_buff___pkt_vlan_present_offset)
  u8 flags;
  bpf_probe_read_kernel(&flags, 1, skb->__pkt_vlan_present_offset);
  return flags & 1; /* PKT_VLAN_PRESENT_BIT, little endian */
#else
  return false;
#endif
}

/* Where the frame would begin. Behind a tag that is in the packet there is no network header yet, or one behind the tag. */
static __always_inline const u8 *get_frame(struct sk_buff *skb, const u8 *l3, u16 protocol) {
  return is_vlan(protocol) ? LOAD(skb, head) + LOAD(skb, mac_header) : l3 - 14;
}

/* Has the packet an Ethernet header, right before its network header? None on tunnels, nor before the neighbour is known. */
static __always_inline bool has_ethernet(struct sk_buff *skb, const u8 *ethernet) {
  return LOAD(skb, head) + LOAD(skb, mac_header) == ethernet;
}

/* Offset of the linear part's end. What lies in pages, payload, cannot be read. */
static __always_inline u32 get_end(struct sk_buff *skb, const u8 *frame) {
  return LOAD(skb, data) + LOAD(skb, len) - LOAD(skb, data_len) - frame;
}

static __always_inline u32 get_length(struct sk_buff *skb, const u8 *frame) { return LOAD(skb, data) + LOAD(skb, len) - frame; }
