"""What `scripts/kernels` runs in each stock kernel. Nothing here is for the machine itself: tests/functional has more."""

from __future__ import annotations

import os
from functools import partial

import pytest

from tests.functional.conftest import Dnettrace, call, lab  # noqa: F401

collect_ignore_glob = [] if "DNETTRACE_VM" in os.environ else ["test_*"]


@pytest.fixture(scope="session")
def dnettrace() -> Dnettrace:
    """As in tests/functional, with the patience that an emulated machine needs."""
    return partial(call, timeout=300)
