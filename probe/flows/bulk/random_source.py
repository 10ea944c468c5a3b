"""What bulk transfers carry: random bytes in a memory file, which the kernel can send without copying them."""

from __future__ import annotations

import os
from typing import Final

# Random bytes cost 5 ms per megabyte: those of the first part are written again and again. Only a compressor whose
# memory reaches 64 KiB back would notice: deflate's reaches 32 KiB, LZ4's is a byte too short.
PERIOD_BYTES: Final = 64 * 1024


def random_source(length_bytes: int) -> int:
    """A file in memory, full of random bytes, for `sendfile`. The caller closes the descriptor.

    What stands at one place stands `PERIOD_BYTES` further on too.
    """
    descriptor = os.memfd_create("bulk", os.MFD_CLOEXEC)
    part = os.urandom(min(length_bytes, PERIOD_BYTES))
    for _ in range(0, length_bytes, len(part)):
        os.write(descriptor, part)
    return descriptor
