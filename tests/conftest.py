"""What all rings of tests share."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skips a test for something that this machine lacks; fails it where everything must run (.ci/run)."""
    if os.environ.get("DNETTRACE_REQUIRE_ALL", "") not in ("", "0"):
        pytest.fail(f"DNETTRACE_REQUIRE_ALL is set, but {reason}", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
