"""The MQTT side of the controller against the real broker."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Self

import pytest
from ingest_kit import AGENT, AgentClient, report, result, wait_until

from fleet_controller.config import BatchConfig, BrokerConfig
from fleet_controller.ingest.client import MqttIngest
from fleet_controller.lab.services import Mosquitto
from fleet_controller.records import Incoming
from probe.messages import encode, topic


class Hand:
    """Takes the batches, and acknowledges when it is told to."""

    def __init__(self, broker: Mosquitto, *, acknowledge: bool = True, **batch: int) -> None:
        self.messages: list[Incoming] = []
        self.session_losses = self.acknowledged = 0
        self.open = threading.Event()
        self.open.set()
        self._acknowledge = acknowledge
        self.ingest = MqttIngest(
            BrokerConfig(host="127.0.0.1", port=broker.port, keepalive_s=5),
            BatchConfig(max_wait_s=0.02, **batch),
            on_session_lost=self._note_loss,
        )
        self.ingest.on_batch(self._take)

    def __enter__(self) -> Self:
        """Connect and wait for the subscription."""
        self.ingest.start()
        assert self.ingest.ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect."""
        self.open.set()
        self.ingest.stop()

    def payloads(self) -> list[bytes]:
        """What came, in order."""
        return [message.payload for message in self.messages]

    def _note_loss(self) -> None:
        self.session_losses += 1

    def _take(self, batch: Sequence[Incoming]) -> None:
        assert self.open.wait(60)
        self.messages += batch
        if self._acknowledge:
            self.ingest.ack(batch)
            self.acknowledged += len(batch)


@pytest.fixture
def agent(broker: Mosquitto) -> Iterator[AgentClient]:
    """An agent's client."""
    client = AgentClient(broker.port)
    yield client
    client.close()


def numbered(count: int, first: int = 0) -> list[bytes]:
    """Payloads that tell themselves apart."""
    return [b"%d" % number for number in range(first, first + count)]


def test_what_is_not_acknowledged_comes_again(broker: Mosquitto, agent: AgentClient) -> None:
    """A controller that ends before it stored a message gets it again; what it acknowledged it does not."""
    with Hand(broker) as first:
        agent.send(*numbered(20))
        wait_until(lambda: first.acknowledged == 20, "the first twenty")
        # The broker reads in order: when it has this, it has the acknowledgements too. A session that is taken over
        # before that would get them again.
        first.ingest.send(topic(AGENT, "instruction"), b"done")
        wait_until(lambda: agent.instructions == [b"done"], "the broker")
    with Hand(broker, acknowledge=False) as second:
        agent.send(*numbered(20, 20))
        wait_until(lambda: len(second.messages) >= 20, "the second twenty")
        assert second.payloads() == numbered(20, 20)
    agent.send(*numbered(5, 40))
    with Hand(broker) as third:
        wait_until(lambda: len(third.messages) >= 25, "what was not acknowledged, and what came meanwhile")
        assert third.payloads() == numbered(25, 20)
        assert third.session_losses == 0


def test_an_old_acknowledgement_is_never_sent(broker: Mosquitto, agent: AgentClient) -> None:
    """The broker loses its disk while a batch is in hand: its message numbers start anew, and the acknowledgement
    of the old batch must not take the new messages' numbers.
    """  # noqa: D205 - one sentence
    with Hand(broker, max_messages=20) as hand:
        hand.open.clear()
        agent.send(*numbered(20))
        wait_until(lambda: hand.ingest.received_messages == 20, "the batch in hand")
        broker.kill()
        wait_until(lambda: not hand.ingest.is_connected, "the loss of the broker")
        broker.wipe()
        hand.ingest.ready.clear()
        broker.start()
        wait_until(lambda: hand.session_losses == 2, "a new session")
        assert hand.ingest.ready.wait(20), "what is sent before has no reader"
        newer = AgentClient(broker.port, "hn-02")
        newer.send(*numbered(20, 100))
        wait_until(lambda: hand.ingest.received_messages >= 40, "the new messages")
        in_hand = [Incoming(1, mid, "", b"") for mid in range(1, 21)]  # of the first connection
        hand.ingest.ack(in_hand)
        assert hand.ingest.stale_acks == 20
        hand._acknowledge = False
        newer.close()
    with Hand(broker) as again:
        wait_until(lambda: set(numbered(20, 100)) <= set(again.payloads()), "the new messages, again")


def test_a_broker_that_restarts_is_found_again(broker: Mosquitto, agent: AgentClient) -> None:
    """After a kill of the broker it is subscribed to again, whatever the broker has kept, and messages flow on."""
    with Hand(broker) as hand:
        agent.send(b"before")
        wait_until(lambda: hand.payloads() == [b"before"], "the first message")
        broker.kill()
        wait_until(lambda: not hand.ingest.is_connected, "the loss of the broker")
        hand.ingest.ready.clear()
        broker.start()
        wait_until(lambda: hand.ingest.connections >= 2, "the second connection")
        assert hand.ingest.ready.wait(20), "it was killed before it saved the session: what is sent now has no reader"
        wait_until(agent.client.is_connected, "the agent's second connection")
        agent.send(b"after")
        wait_until(lambda: b"after" in hand.payloads(), "a message after the restart")


def test_a_lost_session_is_told(broker: Mosquitto) -> None:
    """The first connection has no session, a second one has, and a wiped broker has none again."""
    with Hand(broker) as hand:
        wait_until(lambda: hand.session_losses == 1, "the first session")
    with Hand(broker) as hand:
        assert hand.session_losses == 0
        broker.kill()
        broker.wipe()
        broker.start()
        wait_until(lambda: hand.session_losses == 1, "the word that the session is gone")


def test_a_lost_session_is_told_until_it_is_heard(
    broker: Mosquitto, agent: AgentClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Who hears of it fails once: it is told again, and messages flow meanwhile."""
    hand = Hand(broker)
    hear, heard = hand._note_loss, itertools.count()

    def fail_once() -> None:
        if next(heard) == 0:
            raise RuntimeError("the instructions cannot be made")
        hear()

    hand.ingest._on_session_lost = fail_once
    with hand:
        agent.send(b"meanwhile")
        wait_until(lambda: hand.payloads() == [b"meanwhile"], "a message")
        wait_until(lambda: hand.session_losses == 1, "the word that the session is new")
    assert next(heard) == 2
    assert [record.levelname for record in caplog.records if "failed" in record.getMessage()] == ["ERROR"]


def test_memory_is_bounded_and_nothing_is_lost(
    broker: Mosquitto, agent: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing can be stored, the broker keeps what does not fit; afterwards all of it comes."""
    monkeypatch.setattr("fleet_controller.ingest.client._READ_PAUSE_S", 0.2)
    with Hand(broker, max_messages=10, max_held_messages=50) as hand:
        hand.open.clear()
        agent.send(*numbered(300))
        wait_until(lambda: hand.ingest.shed_messages > 0, "the bound")
        assert hand.ingest.waiting_messages <= 50
        hand.open.set()
        wait_until(lambda: set(hand.payloads()) == set(numbered(300)), "all messages")
        assert hand.ingest.connections >= 2


def test_memory_is_bounded_in_bytes_too(broker: Mosquitto, agent: AgentClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few large messages reach the bound as well."""
    monkeypatch.setattr("fleet_controller.ingest.client._READ_PAUSE_S", 0.2)
    large = [b"%03d" % number + bytes(200_000) for number in range(30)]
    with Hand(broker, max_messages=1, max_held_bytes=1024 * 1024) as hand:
        hand.open.clear()
        agent.send(*large)
        wait_until(lambda: hand.ingest.shed_messages > 0, "the bound")
        assert hand.ingest.waiting_messages <= 6
        hand.open.set()
        wait_until(lambda: set(hand.payloads()) == set(large), "all messages")


def test_a_handler_that_fails_loses_nothing(
    broker: Mosquitto, agent: AgentClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault while handling a batch is told once, and the same batch is handled again until it succeeds."""
    hand = Hand(broker)
    faults = iter([ZeroDivisionError("ours"), ZeroDivisionError("ours")])
    take = hand._take

    def fail_twice(batch: Sequence[Incoming]) -> None:
        for fault in faults:
            raise fault
        take(batch)

    hand.ingest.on_batch(fail_twice)
    with hand:
        agent.send(b"one")
        wait_until(lambda: hand.payloads() == [b"one"], "the third try")
    assert caplog.text.count("ZeroDivisionError: ours") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_network_thread_is_replaced(
    broker: Mosquitto, agent: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library calls a client connected whose thread has died; the missing heartbeat tells, a new one takes over."""
    monkeypatch.setattr("fleet_controller.ingest.client._LIVENESS_KEEPALIVES", 1)
    with Hand(broker) as hand:
        dying = hand.ingest._session.client
        died = threading.Event()

        def die(*_: object) -> None:
            died.set()
            raise SystemExit  # past every guard for exceptions, as a fault inside paho would

        dying.on_message = die
        agent.send(b"poison")
        assert died.wait(10)
        wait_until(lambda: b"poison" in hand.payloads(), "the message, over a new client", 60)
        assert dying is not hand.ingest._session.client
        assert hand.ingest.connections == 2


def test_a_half_open_connection_is_noticed(broker: Mosquitto) -> None:
    """A peer that vanished without a word costs a few keep-alives: the connection is made anew."""
    with socket.create_server(("127.0.0.1", 0)) as listener, Mute(listener, broker.port) as mute:
        hand = Hand(broker)
        hand.ingest = MqttIngest(
            BrokerConfig(host="127.0.0.1", port=listener.getsockname()[1], keepalive_s=5), BatchConfig()
        )
        with hand:
            mute.silent.set()
            wait_until(lambda: not hand.ingest.is_connected, "the loss", 60)
            mute.silent.clear()
            wait_until(lambda: hand.ingest.connections == 2, "the second connection", 60)


class Mute:
    """A relay to the broker that can fall silent without closing anything."""

    def __init__(self, listener: socket.socket, port: int) -> None:
        self.silent = threading.Event()
        self._listener, self._port = listener, port
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        """Begin to relay."""
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up everywhere and wait for the threads."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for one in self._sockets:
            one.close()
        for thread in self._threads:
            thread.join(5)

    def _run(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]  # our own methods
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            for one in (near, far):
                one.settimeout(0.2)
            self._sockets += [near, far]
            self._run(self._relay, near, far)
            self._run(self._relay, far, near)

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        while source.fileno() >= 0:
            try:
                data = source.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                sink.close()
                return
            if not self.silent.is_set():
                try:
                    sink.sendall(data)
                except OSError:
                    return


def test_replies_reach_the_agent(broker: Mosquitto, agent: AgentClient) -> None:
    """What is sent before the broker is there, and what is sent while it restarts, arrives."""
    with Hand(broker) as hand:
        for number in range(50):
            hand.ingest.send(topic(AGENT, "instruction"), b"%d" % number, key=str(number))
        wait_until(lambda: agent.instructions == numbered(50), "fifty messages in order")
        broker.kill()
        hand.ingest.send(topic(AGENT, "instruction"), b"retained", retain=True)
        broker.start()
        wait_until(lambda: hand.ingest.connections == 2, "the second connection")
    newer = AgentClient(broker.port, "hn-02")
    newer.client.subscribe(topic(AGENT, "instruction"), 1)
    wait_until(lambda: newer.instructions == [b"retained"], "what was said while the broker was away")
    newer.close()


def test_only_its_own_shards_are_taken(broker: Mosquitto, agent: AgentClient) -> None:
    """A controller that owns one shard does not see the others' reports."""
    hand = Hand(broker)
    own = int(topic(AGENT, "report").split("/")[2])
    hand.ingest = MqttIngest(
        BrokerConfig(host="127.0.0.1", port=broker.port), BatchConfig(max_wait_s=0.02), shards=[own]
    )
    hand.ingest.on_batch(hand._take)
    with hand:
        agent.send(encode(report(result())), to=topic("hn-02", "report"))
        agent.send(b"mine")
        wait_until(lambda: bool(hand.messages), "the own report")
        assert hand.payloads() == [b"mine"]


def test_a_report_of_qos_0_or_retained_does_no_harm(broker: Mosquitto, agent: AgentClient) -> None:
    """What nobody may acknowledge is taken and not acknowledged; what was retained does not come again."""
    name = topic(AGENT, "report")
    with Hand(broker) as hand:
        agent.client.publish(name, b"qos 0", qos=0)
        agent.client.publish(name, b"kept", qos=1, retain=True)
        wait_until(lambda: len(hand.messages) == 2, "both")
        assert hand.messages[0].mid == 0
    with Hand(broker) as hand:
        agent.send(b"next")
        wait_until(lambda: bool(hand.messages), "the next")
        assert hand.payloads() == [b"next"]


def test_stopping_a_controller_that_never_reached_its_broker() -> None:
    """A broker that is not there delays nothing but the messages."""
    ingest = MqttIngest(BrokerConfig(host="127.0.0.1", port=1), BatchConfig())
    ingest.start()
    ingest.stop()
    assert not ingest.ready.is_set()
