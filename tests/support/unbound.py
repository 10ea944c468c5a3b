"""The real unbound: UDP, TCP, TLS and HTTPS on private ports, over a zone that is signed and one that is not.

`BOGUS` was changed after the signing.
"""

from __future__ import annotations

from pathlib import Path

from fleet_controller.lab.services import Service, answers, find_program, free_dns_port, free_port

SIGNED, UNSIGNED, BOGUS = "www.signed.test", "www.unsigned.test", "forged.signed.test"
WILDCARD = "wild.unsigned.test"
NOBODY = "none.signed.test"
ADDRESS, ADDRESS_V6 = "192.0.2.7", "2001:db8::7"
IDENTITY = "lab-1"
_ZONE = Path(__file__).parent / "signed.test.zone"

_CONF = """\
server:
  directory: "{directory}"
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  logfile: ""
  do-daemonize: no
  module-config: "{modules}"
{interfaces}
  tls-port: {tls_port}
  https-port: {https_port}
  tls-service-pem: "{certificate}"
  tls-service-key: "{key}"
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  identity: "{identity}"
  nsid: "ascii_{identity}"
  trust-anchor: "{anchor}"
  local-zone: "test." nodefault
  local-zone: "whoami.test." redirect
  local-data: "whoami.test. 1 IN TXT 198.51.100.53"
remote-control:
  control-enable: no
auth-zone:
  name: signed.test
  zonefile: "{signed}"
  for-upstream: yes
  for-downstream: no
auth-zone:
  name: unsigned.test
  zonefile: "{unsigned}"
  for-upstream: yes
  for-downstream: no
"""
_PLAIN_ZONE = """\
$ORIGIN unsigned.test.
$TTL 3600
@ IN SOA ns hostmaster 1 3600 600 86400 300
@ IN NS ns
ns IN A 127.0.0.1
www IN A 192.0.2.7
www IN AAAA 2001:db8::7
*.wild IN A 192.0.2.8
"""


class Unbound(Service):
    """A resolver that knows two zones and asks nobody. `hosts` are the addresses that it listens at."""

    def __init__(
        self,
        directory: Path,
        certificate: tuple[Path, Path],
        *,
        hosts: tuple[str, ...] = ("127.0.0.1", "::1"),
        validates: bool = True,
    ) -> None:
        self.host = hosts[0]
        self.port, self.tls_port, self.https_port = free_dns_port(), free_port(), free_port()
        ports = (self.port, self.tls_port, self.https_port)
        configuration = directory / "unbound.conf"
        super().__init__(
            directory,
            [find_program("unbound", "unbound"), "-d", "-c", str(configuration)],
            lambda: answers(self.host, self.port) and answers(self.host, self.https_port),
        )
        plain_zone = directory / "unsigned.test"
        plain_zone.write_text(_PLAIN_ZONE)
        configuration.write_text(
            _CONF.format(
                directory=directory,
                modules="validator iterator" if validates else "iterator",
                interfaces="\n".join(f"  interface: {host}@{port}" for host in hosts for port in ports),
                tls_port=self.tls_port,
                https_port=self.https_port,
                certificate=certificate[0],
                key=certificate[1],
                identity=IDENTITY,
                anchor=_anchor(),
                signed=_ZONE,
                unsigned=plain_zone,
            )
        )


def _anchor() -> str:
    """The signed zone's own key."""
    line = next(line for line in _ZONE.read_text().splitlines() if "\tDNSKEY\t" in line)
    return line.replace("\t", " ")
