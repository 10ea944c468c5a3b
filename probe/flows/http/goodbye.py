"""A server that says goodbye in HTTP/2 still answers what it has taken (RFC 9113 section 6.8).

Imports h2, so only `wires` imports this, and late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from h2.connection import ConnectionInputs, ConnectionState, H2ConnectionStateMachine

if TYPE_CHECKING:
    from h2.events import Event


class PatientMachine(H2ConnectionStateMachine):
    """The states of a client's connection, which stays open when the server says that it will be closed.

    h2's own closes at every GOAWAY and then takes no more frames (python-hyper/h2 issue 1181), and has no setting for
    it: a page that a server still sends, as it should, would be an error of its own. What a GOAWAY means for the
    request is for whoever reads the event.

    Attributes:
        has_goodbye: whether the server said so. No new request may follow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_goodbye = False

    def process_input(self, input_: ConnectionInputs) -> list[Event]:
        """What a frame changes."""
        if input_ is ConnectionInputs.RECV_GOAWAY and self.state is ConnectionState.CLIENT_OPEN:
            self.has_goodbye = True
            return []
        return super().process_input(input_)
