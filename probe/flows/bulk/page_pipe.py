"""Random bytes that the kernel sends again and again without looking them up: pages in a pipe.

`sendfile` looks up each page of its file anew, which costs as much as sending it. A pipe holds its pages by reference:
`tee` hands the references of a whole pipe on to another, and `splice` those to a socket. Nothing is copied, neither
of them touches the bytes, and 1 MiB of memory serves all streams of a transfer.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import Final

from probe.flows.bulk.random_source import PERIOD_BYTES

# As much as anybody may ask for without being root (/proc/sys/fs/pipe-max-size). Only what it holds costs memory.
PIPE_BYTES: Final = 1 << 20
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_tee: Final = _LIBC.tee  # Python has `os.splice`, and not this
_tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
_tee.restype = ctypes.c_ssize_t


class RandomPages:
    """A pipe full of random bytes that nobody ever takes out; one for all streams of a transfer.

    Raises:
        OSError: no more files may be opened, or this user has too many large pipes (/proc/sys/fs/pipe-user-pages-soft).
    """

    def __init__(self) -> None:
        self._out, self._in = _pipe()
        self.length_bytes = fcntl.fcntl(self._in, fcntl.F_GETPIPE_SZ)
        try:
            self._fill()
        except OSError:
            self.close()
            raise

    def _fill(self) -> None:
        part = os.urandom(PERIOD_BYTES)
        for _ in range(0, self.length_bytes, PERIOD_BYTES):
            if os.write(self._in, part) < PERIOD_BYTES:  # it would repeat itself too early, and compress
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def hand_on(self, pipe: int) -> int:
        """Put all of it into an empty pipe as well.

        Returns:
            How many bytes that were.

        Raises:
            OSError: the kernel cannot.
        """
        length_bytes: int = _tee(self._out, pipe, self.length_bytes, os.SPLICE_F_NONBLOCK)
        if length_bytes < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return length_bytes

    def close(self) -> None:
        """Give the pages back, but for those that are still under way."""
        os.close(self._out)
        os.close(self._in)


class PagePipe:
    """One stream's way from the pages to its socket: what did not fit into that waits here for the next time.

    Raises:
        OSError: as `RandomPages`.
    """

    def __init__(self, pages: RandomPages) -> None:
        self._pages = pages
        self._out, self._in = _pipe()
        self._ready_bytes = 0

    def fill(self) -> int:
        """Have something ready to send, and say how many bytes.

        Raises:
            OSError: the kernel cannot.
        """
        if not self._ready_bytes:
            self._ready_bytes = self._pages.hand_on(self._in)
        return self._ready_bytes

    def send(self, sock: int, length_bytes: int) -> int:
        """Send at most so many of the bytes that are ready; how many found room in the socket.

        Raises:
            BlockingIOError: none.
            OSError: the socket's.
        """
        sent_bytes = os.splice(self._out, sock, length_bytes, flags=os.SPLICE_F_NONBLOCK)
        self._ready_bytes -= sent_bytes
        return sent_bytes

    def close(self) -> None:
        """Give back what is ready."""
        os.close(self._out)
        os.close(self._in)


def _pipe() -> tuple[int, int]:
    """Both ends of a pipe of `PIPE_BYTES`."""
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        for end in ends:
            os.close(end)
        raise
    return ends
