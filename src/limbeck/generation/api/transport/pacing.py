"""How fast an endpoint is asked: AIMD on its answers, and a circuit breaker. Nothing waits for a whole batch."""

from __future__ import annotations

import asyncio
from collections import deque

from limbeck.generation.api.transport.clock import Clock

DECREASE = 0.75
INCREASE = 4.0
"""More in flight after as many successes as are in flight."""
BREAKS_AFTER = 8
"""Faults in a row that open the circuit."""
EXHAUSTED_AFTER = 4
"""Faults in a row without which nobody gives up: slow answers are no outage."""
LONGEST_PAUSE = 60.0


def backoff(tries: int) -> float:
    """Seconds to wait after so many tries: 0.5, 1, 2 ... 60."""
    return min(LONGEST_PAUSE, 0.5 * 2.0 ** min(tries, 20))


class Pacer:
    """Slots for requests in flight.

    The number of slots falls by a quarter on a rate limit or an overload, once for all requests that were sent before
    it fell, and grows by four with every round of successes. After :data:`BREAKS_AFTER` faults without a success
    between them the circuit opens: nothing is sent for a while, then one request is tried.

    Args:
        most: slots at most.
        patience: seconds without a success after which :attr:`exhausted` is true.
        clock: the time.
    """

    def __init__(self, most: int, patience: float, clock: Clock) -> None:
        self.most, self.patience, self.clock = most, patience, clock
        self.limit = float(most)
        self.in_flight = 0
        self.closed = False
        self.open_until = 0.0
        self._trial = False  # the circuit is half open
        self._opened = 0
        self._faults = 0
        self._fell = -1.0
        self._last_success: float | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> bool:
        """Wait for a slot. False: the endpoint is not asked any more."""
        while not self.closed:
            pause = self.open_until - self.clock.now()
            if pause > 0:
                await self.clock.sleep(pause)
                continue
            if self.in_flight < (1 if self._trial else max(1, int(self.limit))):
                self.in_flight += 1
                if self._last_success is None:
                    self._last_success = self.clock.now()
                return True
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake(1)  # it was this one's turn: the next may have it
                raise
        return False

    def release(self) -> None:
        """Give a slot back."""
        self.in_flight -= 1
        self._wake(1)

    def succeeded(self) -> None:
        """An answer came."""
        self._last_success = self.clock.now()
        self._faults = self._opened = 0
        if self.limit < self.most:
            self.limit = min(self.most, self.limit + INCREASE / self.limit)
            self._wake(1)
        if self._trial:
            self._trial = False
            self._wake(self.most)

    def failed(self, sent: float, *, crowded: bool, wait: float | None) -> None:
        """No answer came.

        Args:
            sent: when the request was sent.
            crowded: because of too many requests.
            wait: seconds that the server asked for.
        """
        now = self.clock.now()
        if crowded and sent > self._fell:
            self.limit, self._fell = max(1.0, self.limit * DECREASE), now
        self._faults += 1
        if self._faults >= BREAKS_AFTER and now >= self.open_until:
            pause = max(wait or 0.0, backoff(self._opened + 1))
            self.open_until = now + min(pause, max(self.patience, 1.0))
            self._opened += 1
            self._trial = True
            self._wake(len(self._waiting))

    def hold(self, seconds: float) -> None:
        """Send nothing for a while: the server said that nothing is left of its limit."""
        self.open_until = max(self.open_until, self.clock.now() + min(seconds, LONGEST_PAUSE))

    @property
    def exhausted(self) -> bool:
        """Nothing but faults, and some of them, for longer than the patience."""
        if self._last_success is None or self._faults < EXHAUSTED_AFTER:
            return False
        return self.clock.now() - self._last_success > self.patience

    def close(self) -> None:
        """Let nobody in any more."""
        self.closed = True
        self._wake(len(self._waiting))

    def _wake(self, number: int) -> None:
        while number > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                number -= 1
