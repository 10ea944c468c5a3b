"""What bulk transfers carry: random bytes in a memory file, which the kernel can send without copying them."""

from __future__ import annotations

import os
from typing import Final

_PART_BYTES: Final = 1 << 20


def random_source(length_bytes: int) -> int:
    """A file in memory, full of random bytes, for `sendfile`. The caller closes the descriptor."""
    descriptor = os.memfd_create("bulk", os.MFD_CLOEXEC)
    for _ in range(0, length_bytes, _PART_BYTES):
        os.write(descriptor, os.urandom(_PART_BYTES))
    return descriptor
