"""nginx as a measurement peer, configured as production deploys it: a source at /download, a sink at /upload."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from fleet_controller.lab.services import Service, answers, find_program

SOURCE_BYTES: Final = 64 * 1024 * 1024
_CHUNK_BYTES: Final = 1 << 20

# `return 204` answers a POST at once and throws its body away while it lingers. With nginx's defaults (30 s in all,
# 5 s of silence) a longer upload is reset, and so is one on a mobile line that stands still for a moment. Unlike in
# production there is no master: workers outlive theirs when it is killed, and nothing here may outlive the lab.
NGINX_CONF: Final = """\
daemon off;
master_process off;
user root;
pid {directory}/pid;
error_log {directory}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  default_type application/octet-stream;
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  sendfile_max_chunk 2m;
  keepalive_requests 1000000;
  client_max_body_size 0;
  lingering_time 120s;
  lingering_timeout 30s;
  client_body_temp_path {directory}/tmp;
  proxy_temp_path {directory}/tmp;
  fastcgi_temp_path {directory}/tmp;
  uwsgi_temp_path {directory}/tmp;
  scgi_temp_path {directory}/tmp;
  server {{
{listen}
    root {root};
    location = /upload {{ return 204; }}
    location = /download {{ }}
    location = /small {{ default_type application/octet-stream; return 200 "1"; }}
{locations}
  }}
}}
"""


class Nginx(Service):
    """Stock nginx in front of a file of random bytes.

    `hosts` are the addresses that it listens at, `locations` more lines for its server block. The file is in `root`,
    which should be in memory: the disk is not what is measured.
    """

    def __init__(
        self, directory: Path, root: Path, *, hosts: Sequence[str], port: int = 80, locations: str = ""
    ) -> None:
        self.host, self.port = hosts[0], port
        self._source_file = root / "download"
        configuration = directory / "nginx.conf"
        command = [
            find_program("nginx", "nginx-light"),
            *("-c", str(configuration)),
            *("-p", str(directory)),
            *("-e", str(directory / "error.log")),
        ]
        super().__init__(directory, command, lambda: answers(self.host, self.port))
        listen = "\n".join(f"    listen {f'[{host}]' if ':' in host else host}:{port};" for host in hosts)
        configuration.write_text(
            NGINX_CONF.format(directory=directory, root=root, listen=listen, locations=locations), encoding="utf-8"
        )

    def start(self) -> Self:
        """Start it, with its file made."""
        if not self._source_file.exists():
            with self._source_file.open("wb") as file:
                for _ in range(SOURCE_BYTES // _CHUNK_BYTES):
                    file.write(os.urandom(_CHUNK_BYTES))
        return super().start()
