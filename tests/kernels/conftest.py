"""What `scripts/kernels` runs in each stock kernel. Nothing here is for the machine itself: tests/functional has more."""

from __future__ import annotations

import os

from tests.functional.conftest import dnettrace, lab  # noqa: F401

collect_ignore_glob = [] if "DNETTRACE_VM" in os.environ else ["test_*"]
