# shellcheck shell=bash
# Sourced by scripts/distributions and scripts/engines: userlands of other Debian suites, entered on this same kernel.
# A root is made once by debootstrap, in the cache; all that is mounted for it is mounted in a namespace of the script's
# own and goes with its processes, `kill -9` or not.
#   DNETTRACE_CACHE    where the roots go; ~/.cache/dnettrace otherwise
#   DEBOOTSTRAP_MIRROR where Debian's packages come from, if not from debootstrap's own default
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=${0##*/}
export LC_ALL=C.UTF-8 PATH=$PATH:/usr/sbin:/sbin
export DNETTRACE_CACHE=${DNETTRACE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/dnettrace}
roots=$DNETTRACE_CACHE/roots
certificates=/etc/ssl/certs/ca-certificates.crt

say() { echo "$name: $*"; }
fail() { echo "$name: $*" >&2; exit 2; }

# Begins the script anew in a mount namespace of its own, where its named network namespaces are nobody else's either.
alone() {
  [ "$(id -u)" = 0 ] || fail "needs root: sudo ./scripts/$name"
  [ -n "${DNETTRACE_ALONE:-}" ] || DNETTRACE_ALONE=1 exec unshare --mount --propagation private "$0" "$@"
  mkdir -p /run/netns
  mount -t tmpfs -o mode=755 tmpfs /run/netns
}

# An engine is of a distribution, too: it comes with the root, and so does what every installed system has. What dnettrace
# needs is left to scripts/setup.
engine_packages() {
  case $1 in
  podman) echo podman runc netavark aardvark-dns iptables busybox-static ;;
  *) echo docker.io docker-cli iptables busybox-static ;;  # the client is a package of its own from Debian 13 on
  esac
}

provide_root() {  # NAME SUITE ENGINE
  local root=$roots/$1 suite=$2 packages
  packages=$(engine_packages "$3")
  [ ! -e "$root" ] || return 0
  command -v debootstrap >/dev/null || apt-get -qq install -y --no-install-recommends debootstrap >/dev/null </dev/null ||
    fail "needs debootstrap: sudo apt-get install debootstrap"
  mkdir -p "$roots"
  say "making a root of $suite with $3 in $root (about 200 MB to download)"
  rm -rf "$root.new"
  # shellcheck disable=SC2086
  debootstrap --variant=minbase "$suite" "$root.new" ${DEBOOTSTRAP_MIRROR:-} >"$roots/$1.log" 2>&1 </dev/null ||
    { tail -n 5 "$roots/$1.log" >&2; fail "debootstrap could not make it: above is why; it needs the network"; }
  # No service is started by an install, and dpkg need not wait for the disk: a root that broke is made anew.
  printf '#!/bin/sh\nexit 101\n' >"$root.new/usr/sbin/policy-rc.d"
  chmod +x "$root.new/usr/sbin/policy-rc.d"
  echo force-unsafe-io >"$root.new/etc/dpkg/dpkg.cfg.d/unsafe-io"
  enter_root "$root.new"
  # shellcheck disable=SC2086
  in_root "$root.new" sh -c 'DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    ca-certificates procps $(apt-cache show "$@" 2>/dev/null | sed -n "s/^Package: //p" | sort -u)' sh $packages \
    >>"$roots/$1.log" 2>&1 </dev/null || { tail -n 5 "$roots/$1.log" >&2; fail "apt-get could not install $packages in it"; }
  umount -R "$root.new"
  mv "$root.new" "$root"
}

# Its file tree becomes a mount point (a container's root must be below one), with this kernel's views in it.
enter_root() {
  local view
  mount --bind "$1" "$1"
  for view in proc sys dev; do mount --rbind "/$view" "$1/$view"; done
  mount -t tmpfs -o mode=755 tmpfs "$1/run"
  mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
  # The network is this machine's, and so is whom it trusts there.
  cp -L /etc/resolv.conf "$1/etc/resolv.conf"
  [ ! -e "$1/$certificates" ] || [ ! -e "$certificates" ] || cp -L "$certificates" "$1/$certificates"
}

# Not chroot: the root of this mount namespace is where `docker exec` and others that enter a namespace of mounts look.
in_root() {  # ROOT COMMAND...
  local root=$1
  shift
  env -u XDG_CACHE_HOME -u DNETTRACE_CACHE -u DNETTRACE_ALONE HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    unshare --mount sh -c 'cd "$0" && pivot_root . mnt && umount -l /mnt && exec "$@"' "$root" "$@"
}
