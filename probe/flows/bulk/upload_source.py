"""Where the bodies of one transfer's uploads come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, Protocol

from probe.flows.bulk.page_pipe import PagePipe, RandomPages
from probe.flows.bulk.random_source import PERIOD_BYTES, random_source

# Whole frames of ndt7. It is sent again and again; its pages cost time, which is spent before a stream connects.
_FILE_BYTES: Final = 1 << 20


class Body(Protocol):
    """One stream's endless body."""

    def fill(self) -> int:
        """Have something ready to send, and say how many bytes.

        Raises:
            OSError: the kernel cannot.
        """

    def send(self, sock: int, length_bytes: int) -> int:
        """Send at most so many of them; how many found room in the socket.

        Raises:
            BlockingIOError: none.
            OSError: the socket's.
        """

    def close(self) -> None:
        """Give back what it holds."""


class FileBody:
    """Out of a memory file that `random_source` made, for hosts that give no pipes."""

    def __init__(self, file: int, file_bytes: int) -> None:
        self._file, self._file_bytes = file, file_bytes
        self._offset_bytes = 0

    def fill(self) -> int:
        """The rest of the file."""
        return self._file_bytes - self._offset_bytes

    def send(self, sock: int, length_bytes: int) -> int:
        """Send by `sendfile`."""
        sent_bytes = os.sendfile(sock, self._file, self._offset_bytes, length_bytes)
        # It repeats itself: seen from its first period nearly all of it lies ahead.
        self._offset_bytes = (self._offset_bytes + sent_bytes) % PERIOD_BYTES
        return sent_bytes

    def close(self) -> None:
        """The file is its maker's."""


class UploadSource:
    """Random bytes for all streams of a transfer, each kind of them made when it is asked for.

    `prepare` writes what a dialect wants to have between them into the file, given its descriptor and length.
    """

    length_bytes: Final = _FILE_BYTES

    def __init__(self, prepare: Callable[[int, int], None] | None = None) -> None:
        self._prepare = prepare
        self._file: int | None = None
        self._pages: RandomPages | None = None

    def file(self) -> int:
        """The descriptor of a memory file of `length_bytes`, the same one each time."""
        if self._file is None:
            self._file = self._make_file()
        return self._file

    def _make_file(self) -> int:
        file = random_source(_FILE_BYTES)
        try:
            if self._prepare is not None:
                self._prepare(file, _FILE_BYTES)
        except BaseException:
            os.close(file)
            raise
        return file

    def body(self) -> Body:
        """An endless body for one stream, which closes it before this is closed."""
        try:
            return self._pipe()
        except OSError:  # of files, or of a user's pipes, there are only so many
            return FileBody(self.file(), _FILE_BYTES)

    def _pipe(self) -> PagePipe:
        pages = self._pages or RandomPages()
        try:
            pipe = self._pipe_from(pages)
        except OSError:
            if pages is not self._pages:
                pages.close()
            raise
        self._pages = pages
        return pipe

    def _pipe_from(self, pages: RandomPages) -> PagePipe:
        pipe = PagePipe(pages)
        try:
            pipe.fill()
        except OSError:
            pipe.close()
            raise
        return pipe

    def close(self) -> None:
        """Give it all back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._pages is not None:
            self._pages.close()
            self._pages = None
