"""Which stream speaks with a peer: the one place that knows every protocol of bulk transfer."""

from __future__ import annotations

import socket
from typing import Final

from probe.flows.bulk.librespeed import LibreSpeedDownload, LibreSpeedUpload
from probe.flows.bulk.ndt7 import Ndt7Download, Ndt7Upload, make_frames
from probe.flows.bulk.stream import Order, Stream
from probe.flows.bulk.stream_download import DownloadStream
from probe.flows.bulk.stream_upload import UploadStream
from probe.flows.bulk.tls_contexts import TlsContexts
from probe.flows.bulk.tls_wire import TlsWire
from probe.flows.bulk.upload_source import UploadSource
from probe.flows.bulk.wire import PlainWire, Wire
from probe.messages import BulkProtocol

_STREAMS: Final[dict[BulkProtocol, tuple[type[DownloadStream], type[UploadStream]]]] = {
    "http": (DownloadStream, UploadStream),
    "librespeed": (LibreSpeedDownload, LibreSpeedUpload),
    "ndt7": (Ndt7Download, Ndt7Upload),
}


class StreamMaker:
    """Makes the streams of one transfer, and owns what they share."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._source = UploadSource(make_frames if order.protocol == "ndt7" else None)
        self._tls = None if order.tls is None else TlsContexts(order.tls)

    def make(self, sock: socket.socket) -> Stream:
        """A stream over `sock`, not yet connected; the stream owns it from then on.

        Raises:
            NotRunError: TLS is demanded, and the file of authorities cannot be read (`tool_missing`).
        """
        try:
            return self._make(sock, PlainWire(sock) if self._tls is None else TlsWire(sock, self._tls))
        except BaseException:
            sock.close()
            raise

    def _make(self, sock: socket.socket, wire: Wire) -> Stream:
        download, upload = _STREAMS[self._order.protocol]
        if self._order.direction == "download":
            return download(sock, self._order, wire)
        return upload(sock, self._order, self._source, wire)

    def close(self) -> None:
        """Give back what the streams shared; they must be closed already."""
        self._source.close()
