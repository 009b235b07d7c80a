"""The queue of requests that wait for a verifier: clients take turns, by the tokens that they use.

Pure. Each client has a line of its own, first come first. Next is the line whose client has been given least so far
(start-time fair queueing, Goyal et al. 1996; by tokens, as the virtual token counter of Sheng et al. 2024). A client
that was away begins where the last turn began: having been idle earns no credit, and having been busy while nobody
else waited costs nothing. So however much one client queues, another's request waits for one of its turns, not for all.

A turn costs the prompt, and each token that comes of it costs itself while others wait. What a request may ask for at
most says little: a chat without a limit asks for the whole context and ends after a hundred tokens.
"""

from __future__ import annotations

from collections import OrderedDict


class FairQueue:
    """See the top of the file."""

    def __init__(self) -> None:
        self._first: OrderedDict[str, None] = OrderedDict()  # requests that ran before: ahead of all lines
        self._lines: dict[str, OrderedDict[str, int]] = {}  # by client, none empty: what each request's turn costs
        self._client: dict[str, str] = {}  # by request that stands in a line
        self._given: dict[str, int] = {}  # by client: tokens, on a scale whose zero moves
        self._floor = 0  # what the client of the last turn had been given before it; never shrinks

    def __len__(self) -> int:
        return len(self._first) + len(self._client)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._first or request_id in self._client

    def add(self, request_id: str, client: str, num_tokens: int) -> None:
        """At the end of its client's line; its turn costs `num_tokens`."""
        line = self._lines.get(client)
        if line is None:
            line = self._lines[client] = OrderedDict()
            self._given[client] = self._given_to(client)
        line[request_id] = num_tokens
        self._client[request_id] = client

    def add_first(self, request_id: str) -> None:
        """Ahead of all: it ran before, and its turn has been paid for."""
        self._first[request_id] = None
        self._first.move_to_end(request_id, last=False)

    def next(self) -> str | None:
        """Whose turn it is; None if nobody waits."""
        if self._first:
            return next(iter(self._first))
        if not self._lines:
            return None
        return next(iter(self._lines[self._neediest()]))

    def take(self) -> None:
        """The turn of `next()` has come: it leaves the queue, and its client pays for it."""
        if self._first:
            self._first.popitem(last=False)
            return
        client = self._neediest()
        request_id, num_tokens = next(iter(self._lines[client].items()))
        self._floor = max(self._floor, self._given[client])
        self._given[client] += num_tokens
        self.discard(request_id)

    def used(self, client: str, num_tokens: int) -> None:
        """A running request of `client` has come to so many more tokens."""
        if len(self._lines) > (client in self._lines):  # somebody else waits
            self._given[client] = self._given_to(client) + num_tokens

    def discard(self, request_id: str) -> None:
        """It waits no longer, if it did."""
        self._first.pop(request_id, None)
        client = self._client.pop(request_id, None)
        if client is None:
            return
        del self._lines[client][request_id]
        if not self._lines[client]:
            del self._lines[client]
            # What an idle client was given matters only while it is ahead of the others; so this stays small.
            self._given = {
                name: given for name, given in self._given.items() if given > self._floor or name in self._lines
            }

    def crowding_out(self, client: str) -> str | None:
        """Who gives way, the queue being full, for a request of `client`: the last of the longest line.

        None if that line would not be longer even then: then it is the newcomer's turn to be told to come back.
        """
        if not self._lines:
            return None
        longest = max(self._lines, key=lambda name: len(self._lines[name]))
        if len(self._lines[longest]) <= len(self._lines.get(client, ())) + 1:
            return None
        return next(reversed(self._lines[longest]))

    def _given_to(self, client: str) -> int:
        return max(self._floor, self._given.get(client, 0))

    def _neediest(self) -> str:
        return min(self._lines, key=self._given.__getitem__)
