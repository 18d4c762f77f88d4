"""The files of one recording."""

from __future__ import annotations

import re
from collections import deque
from contextlib import suppress
from pathlib import Path

from tracer.errors import UserError

_SIZES = {"k": 10**3, "M": 10**6, "G": 10**9}
_TIMES = {"s": 1.0, "min": 60.0, "h": 3600.0}
_LIMIT = re.compile(r"(\d+)\s*(?:([kKMG])B?|(s|min|h))")


def limit(text: str) -> tuple[int | None, float | None]:
    """(bytes, None) of "100M" or "100MB", (None, seconds) of "30s", "10min" or "1h". ValueError with a sentence."""
    found = _LIMIT.fullmatch(text.strip())
    if not found or not int(found[1]):
        raise ValueError(f"{text!r} is neither a size (500k, 100M, 1G) nor a time (30s, 10min, 1h).")
    if found[2]:
        return int(found[1]) * _SIZES["k" if found[2] == "K" else found[2]], None
    return None, int(found[1]) * _TIMES[found[3]]


class Names:
    """Names for files of a recording that goes on in a new one now and then: trace.pcapng becomes trace-0001.pcapng,
    trace-0002.pcapng, so that they sort and keep their type. Only the last `keep` of them stay."""

    def __init__(self, path: str, keep: int | None, force: bool) -> None:
        self._path, self._keep = Path(path), keep
        self._made: deque[Path] = deque()
        self._number = 0
        there = sorted(p.name for p in self._path.parent.glob("*") if self._is_ours(p.name))
        if there and not force:
            raise UserError(f"{there[0]} exists: choose another name, or add --force to replace it.")

    def next(self) -> str:
        """The next one's path; one that is too many is gone then."""
        self._number += 1
        path = self._path.with_name(f"{self._path.stem}-{self._number:04}{self._path.suffix}")
        self._made.append(path)
        while self._keep is not None and len(self._made) > self._keep:
            with suppress(OSError):
                self._made.popleft().unlink()
        return str(path)

    def _is_ours(self, name: str) -> bool:
        return bool(re.fullmatch(rf"{re.escape(self._path.stem)}-\d{{4,}}{re.escape(self._path.suffix)}", name))
