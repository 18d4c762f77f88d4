/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The addresses that a selection names, whichever kind of selection it is. */
#pragma once

#ifndef ADDRESSES
#define ADDRESSES 64
#endif

BPF_HASH(addresses, struct address, u8, ADDRESSES);

/* Into a key that is cleared. */
static __always_inline void set_address(struct address *key, const u8 *address, bool v4) {
  __builtin_memcpy(key->bytes, address, 4);
  if (!v4)
    __builtin_memcpy(key->bytes + 4, address + 4, 12);
}

static __always_inline bool filter_address(const u8 *address, bool v4) {
  struct address key = {};
  set_address(&key, address, v4);
  return addresses.lookup(&key) != 0;
}
