from __future__ import annotations

from fleet_controller.ingest import outbox as outbox_module
from fleet_controller.ingest.outbox import WINDOW, Outbox


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """The time now."""
        return self.now_s


def filled(count: int, clock: Clock | None = None) -> Outbox:
    """An outbox with so many words in it."""
    box = Outbox("heartbeat", clock or Clock())
    for number in range(count):
        box.put(f"topic/{number}", b"word", key=str(number), retain=False)
    return box


def send_all(box: Outbox) -> list[str]:
    """Hand over what it gives; the topics."""
    sent: list[str] = []
    while (message := box.next(30.0)) is not None:
        box.sent(len(sent) + 1, message)
        sent.append(message.topic)
    return sent


def test_few_are_on_their_way_at_once() -> None:
    """No more than the window is handed to paho before the broker has answered."""
    box = filled(WINDOW * 2 + 3)
    assert len(send_all(box)) == WINDOW
    for mid in range(1, 4):
        box.published(mid, None)
    assert box.settle()
    assert not box.settle()
    assert send_all(box) == [f"topic/{WINDOW + number}" for number in range(3)]


def test_a_newer_word_takes_the_older_ones_place() -> None:
    """Of one key only the newest waits; it goes to the end."""
    box = filled(2)
    box.put("topic/0", b"newer", key="0", retain=True)
    first, second = box.next(30), box.next(30)
    assert first is not None
    assert second is not None
    assert (first.topic, second.payload, second.retain) == ("topic/1", b"newer", True)
    assert box.next(30) is None


def test_too_many_words_put_out_the_oldest() -> None:
    """A broker that is away for ever costs a bounded memory, and the drops are counted."""
    count = outbox_module.WAITING_MAX + 5
    box = filled(count)
    assert box.dropped == 5
    first = box.next(30)
    assert first is not None
    assert first.topic == "topic/5"


def test_silence_is_broken_by_a_heartbeat() -> None:
    """After a quiet half keep-alive there is something to send, so that life can be told from death."""
    clock = Clock()
    box = filled(0, clock)
    assert box.next(15.0) is None
    clock.now_s = 15.0
    beat = box.next(15.0)
    assert beat is not None
    assert beat.topic == "heartbeat"
    box.sent(1, beat)
    assert box.next(15.0) is None


def test_what_a_lost_client_held_waits_again() -> None:
    """When the client is replaced, what it had not delivered is sent by the next one, unless newer words wait."""
    box = filled(3)
    send_all(box)
    box.put("topic/1", b"newer", key="1", retain=False)
    box.published(1, None)
    box.settle()
    box.take_back()
    waiting = {message.topic: message.payload for message in iter(lambda: box.next(30), None)}
    assert waiting == {"topic/1": b"newer", "topic/2": b"word"}


def test_a_refusal_is_counted_but_not_that_of_a_heartbeat() -> None:
    """An access list that forbids receipts shows; nobody needs to hear the heartbeat."""
    clock = Clock()
    box = filled(1, clock)
    send_all(box)
    clock.now_s = 100
    beat = box.next(15.0)
    assert beat is not None
    box.sent(2, beat)
    box.published(1, "Not authorized")
    box.published(2, "Not authorized")
    box.published(77, "of another time")
    box.settle()
    assert box.refused == 1
