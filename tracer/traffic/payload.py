"""What a test packet carries."""

from __future__ import annotations

from tracer.errors import UserError

# Bytes, by IP version, after 8 bytes of ICMP's or UDP's header; IPv6 does not count its own header.
MAX_PAYLOAD = {4: 65535 - 20 - 8, 6: 65535 - 8}
_PATTERN = b"dnettrace"


def pattern(size: int, version: int) -> bytes:
    """So many bytes that show in any packet dump whose they are. UserError where an IP packet cannot hold them."""
    if not 0 <= size <= MAX_PAYLOAD[version]:
        raise UserError(f"A payload of {size} bytes does not fit an IPv{version} packet: "
                        f"give 0 to {MAX_PAYLOAD[version]} bytes.")
    return (_PATTERN * (size // len(_PATTERN) + 1))[:size]
