"""The real nginx with pages, over both IP versions, plain and by TLS with HTTP/2; and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from fleet_controller.lab.services import Service, answers, find_program, free_port

PAGE = bytes(range(256)) * 80
Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_CONF = """\
daemon off;
worker_processes 1;
user root;
pid {directory}/pid;
error_log {directory}/error.log warn;
events {{ worker_connections 64; }}
http {{
  access_log off;
  default_type application/octet-stream;
  keepalive_requests {requests_max};
  client_body_temp_path {directory}/tmp; proxy_temp_path {directory}/tmp; fastcgi_temp_path {directory}/tmp;
  uwsgi_temp_path {directory}/tmp; scgi_temp_path {directory}/tmp;
  server {{
{listen}
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    root {directory}/pages;
    absolute_redirect off;
    location = /empty {{ return 204; }}
    location = /busy {{ return 503; }}
    location = /moved {{ return 302 /page; }}
    location = /away {{ return 302 http://portal.test/login; }}
    location = /down {{ return 301 http://$host:{port}/page; }}
    location = /loop {{ return 302 /loop; }}
    location = /far {{ return 302 /{long}; }}
    location = /nowhere {{ add_header Location "http://[" always; return 302; }}
  }}
}}
"""


class WebSite(Service):
    """nginx with one page of 20 KiB and some that are not there.

    `hosts` are the addresses that it listens at, `requests_max` how many requests it takes on one connection: with the
    last of them it says that it will close.
    """

    def __init__(
        self,
        directory: Path,
        certificate: tuple[Path, Path],
        hosts: tuple[str, ...] = ("127.0.0.1", "[::1]"),
        *,
        requests_max: int = 1000,
    ) -> None:
        self.port, self.tls_port = free_port(), free_port()
        configuration = directory / "nginx.conf"
        command = [find_program("nginx", "nginx-light"), "-c", str(configuration), "-p", str(directory)]
        super().__init__(
            directory, [*command, "-e", str(directory / "error.log")], lambda: answers(hosts[0], self.tls_port)
        )
        pages = directory / "pages"
        pages.mkdir(parents=True)
        (pages / "page").write_bytes(PAGE)
        configuration.write_text(
            _CONF.format(
                directory=directory,
                listen="\n".join(
                    f"    listen {host}:{self.port};\n    listen {host}:{self.tls_port} ssl http2;" for host in hosts
                ),
                port=self.port,
                requests_max=requests_max,
                long="x" * 600,
                certificate=certificate[0],
                key=certificate[1],
            )
        )


@contextlib.asynccontextmanager
async def misbehaving(
    behaviour: Behaviour, tls: tuple[Path, Path] | None = None, *, alpn: str = "http/1.1", host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """A server that treats each connection so; gives its port."""
    served: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        with contextlib.suppress(OSError, EOFError):
            await behaviour(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        context.set_alpn_protocols([alpn])
    server = await asyncio.start_server(serve, host, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if served:
            await asyncio.wait(served, timeout=5)


def says(content: bytes, then: Behaviour | None = None) -> Behaviour:
    """Read the request, write `content`, and then go on so, or close."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(content)
        await writer.drain()
        if then is not None:
            await then(reader, writer)

    return behave


async def is_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take everything, say nothing, until the other side goes."""
    del writer
    while await reader.read(65_536):
        pass


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    del reader
    await asyncio.sleep(0.02)  # what was written before is read before
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def never_ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Go on writing for as long as somebody reads."""
    del reader
    while True:
        writer.write(bytes(65_536))
        await writer.drain()
