"""The parts of TLS for bulk that need no network: which cipher, how much overhead."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe.errors import NotRunError
from probe.flows.bulk.tls_contexts import TlsContexts, says_aes
from probe.flows.bulk.tls_wire import overhead_bytes
from probe.flows.bulk.wire import TlsAgreement, TlsTerms
from probe.messages import FailureKind, NotRunReason

PI_4 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41

Revision\t: c03111
Model\t\t: Raspberry Pi 4 Model B Rev 1.1
"""
PI_5 = PI_4.replace("evtstrm crc32", "evtstrm aes pmull sha1 sha2 crc32")
XEON = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme sse4_2 x2apic aes xsave avx\n"


@pytest.mark.parametrize(
    ("cpu_info", "has_aes"),
    [(PI_4, False), (PI_5, True), (XEON, True), (XEON.replace(" aes", " vaes"), False), ("", False)],
)
def test_a_cpu_says_whether_it_has_aes(cpu_info: str, has_aes: bool) -> None:
    """ARM lists it among its Features, x86 among its flags; a kernel that says nothing has none."""
    assert says_aes(cpu_info) is has_aes


@pytest.mark.parametrize(
    ("version", "cipher", "overhead"),
    [
        ("TLSv1.3", "TLS_AES_256_GCM_SHA384", 22),
        ("TLSv1.3", "TLS_CHACHA20_POLY1305_SHA256", 22),
        ("TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256", 29),
        ("TLSv1.2", "ECDHE-ECDSA-CHACHA20-POLY1305", 21),
    ],
)
def test_records_have_the_overhead_of_their_version(version: str, cipher: str, overhead: int) -> None:
    """RFC 8446 section 5.2, RFC 5288 section 3, RFC 7905 section 2."""
    assert overhead_bytes(TlsAgreement(version, cipher)) == overhead


def test_chacha20_is_asked_for_alone_then_everything() -> None:
    """One failed handshake changes what is offered, for all streams, once; a bad certificate does not."""
    contexts = TlsContexts(TlsTerms("peer.test"), has_aes=False)
    first = contexts.context()
    offered = {suite["name"] for suite in first.get_ciphers() if suite["protocol"] == "TLSv1.2"}
    assert offered
    assert all("CHACHA20" in name for name in offered)
    assert not contexts.may_try_again(first, FailureKind.CERTIFICATE_INVALID)
    assert contexts.may_try_again(first, FailureKind.HANDSHAKE_FAILED)
    second = contexts.context()
    assert "ECDHE-ECDSA-AES128-GCM-SHA256" in {suite["name"] for suite in second.get_ciphers()}
    assert contexts.may_try_again(first, FailureKind.RESET)  # a stream that was still at the first
    assert not contexts.may_try_again(second, FailureKind.HANDSHAKE_FAILED)
    assert contexts.context() is second


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_authorities_that_cannot_be_read_stop_the_measurement(tmp_path: Path, content: str | None) -> None:
    """not_run(tool_missing): this says nothing about the line."""
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(NotRunError) as caught:
        TlsContexts(TlsTerms("peer.test", str(file))).context()
    assert caught.value.not_run.reason is NotRunReason.TOOL_MISSING
