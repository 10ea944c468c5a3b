"""Where a response's body ends, for each way that RFC 9112 section 6.3 knows."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import MeasurementFailedError
from probe.flows.bulk.http_body import BodyEnd
from probe.flows.bulk.http_head import find_head
from probe.messages import FailureKind

CHUNKS = b"5\r\nhello\r\nA;name=value\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"


def body(head: bytes) -> BodyEnd:
    """After this head."""
    found = find_head(head + b"\r\n\r\n")
    assert found is not None
    return BodyEnd(found)


@pytest.mark.parametrize("head", [b"HTTP/1.1 204 No", b"HTTP/1.1 200 OK\r\nContent-Length: 0"])
def test_some_have_none(head: bytes) -> None:
    """It ends at once."""
    assert body(head).is_reached


def test_a_length_is_counted() -> None:
    """To the byte."""
    end = body(b"HTTP/1.1 200 OK\r\nContent-Length: 5")
    end.take(b"hell")
    assert not end.is_reached
    end.take(b"o")
    assert end.is_reached


def test_without_a_length_it_ends_with_the_connection() -> None:
    """Never by itself."""
    end = body(b"HTTP/1.1 200 OK")
    end.take(b"whatever")
    assert not end.is_reached


@given(st.lists(st.integers(0, len(CHUNKS)), max_size=20))
def test_chunks_end_where_they_end_in_any_parts(places: list[int]) -> None:
    """Not one byte earlier, extensions and trailers and all."""
    end = body(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked")
    edges = sorted({0, *places, len(CHUNKS) - 1})
    for begin, until in itertools.pairwise(edges):
        end.take(CHUNKS[begin : min(until, len(CHUNKS) - 1)])
        assert not end.is_reached
    end.take(CHUNKS[-1:])
    assert end.is_reached


@pytest.mark.parametrize("chunks", [b"xyz\r\n", b"-5\r\n", b"f" * 2000, b"10000000000000000\r\n"])
def test_what_is_no_chunk_is_malformed(chunks: bytes) -> None:
    """A size that is none, negative, endless or beyond all reason."""
    with pytest.raises(MeasurementFailedError) as caught:
        body(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked").take(chunks)
    assert caught.value.failure.kind is FailureKind.MALFORMED
