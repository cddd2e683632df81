"""A CodeBeaker server as seen from here: whether it can be reached, and one connection for what concerns no session."""

from __future__ import annotations

import logging
import random
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from loopaid.core.breaker import BreakerState, CircuitBreaker
from loopaid.errors import ConnectionLost
from loopaid.model import ServerStatistics
from loopaid.providers.codebeaker.endpoint import CLOSED, ConnectFailed, Endpoint, RpcFailed
from loopaid.wire.codebeaker import CloseSession, Initialized

if TYPE_CHECKING:
    from loopaid.providers.codebeaker.connection import RpcConnection

log = logging.getLogger(__name__)

CONTROL_TIMEOUT_S: Final = 10.0
"""For requests that cost the server nothing."""


class Server:
    """Connections to one server, through one circuit breaker. They live in `nursery`."""

    def __init__(self, endpoint: Endpoint, nursery: trio.Nursery, *, connect_timeout_s: float) -> None:
        self.endpoint = endpoint
        self.breaker = CircuitBreaker()
        self.protocol_version = ""
        self._retries = 0
        self._made = 0
        self._reconnects = 0
        self._lost = 0  # connections that nothing has taken the place of
        self._open: set[RpcConnection] = set()
        self._nursery = nursery
        self._connect_timeout_s = connect_timeout_s
        self._control: RpcConnection | None = None
        self._control_turn = trio.Lock()
        self._tried = trio.Event()

    def __repr__(self) -> str:
        return f"<Server {self.endpoint.url} {self.breaker!r}>"

    @property
    def problem(self) -> str | None:
        """Why it cannot be used at the moment."""
        if self.breaker.state is BreakerState.CLOSED:
            return None
        return f"no connection to {self.endpoint.url}: {self.breaker.reason}"

    @property
    def retry_after_s(self) -> float:
        return max(0.0, self.breaker.retry_at - trio.current_time())

    def statistics(self) -> ServerStatistics:
        breaker = self.breaker
        return ServerStatistics(
            url=self.endpoint.url,
            breaker=breaker.state.value,
            reason=breaker.reason,
            retry_in_s=self.retry_after_s if breaker.state is BreakerState.OPEN else 0.0,
            connections=len(self._open),
            connections_made=self._made,
            reconnects=self._reconnects,
            retries=self._retries,
        )

    async def connect(self) -> RpcConnection:
        """A new connection; tries again, after growing pauses, for as long as connecting may take. Raises
        ConnectFailed."""
        deadline = trio.current_time() + self._connect_timeout_s
        failed = False
        while True:
            wait_s = self.breaker.wait_s(trio.current_time())
            if trio.current_time() + wait_s > deadline and self.breaker.state is BreakerState.OPEN:
                raise ConnectFailed(self.problem)
            tried = self._tried
            with trio.move_on_after(wait_s):
                await tried.wait()
            if self.breaker.wait_s(trio.current_time()) > 0:
                continue
            self._retries += failed
            try:
                return await self._try(max(0.1, deadline - trio.current_time()))
            except ConnectFailed as failure:
                failed = True
                log.debug("no connection to %s: %s", self.endpoint.url, failure)

    async def _try(self, timeout_s: float) -> RpcConnection:
        from loopaid.providers.codebeaker.connection import connect  # only who has a server pays for WebSockets

        self.breaker.on_try()
        try:
            connection = await connect(self._nursery, self.endpoint, timeout_s)
        except ConnectFailed as failure:
            self.breaker.on_failure(trio.current_time(), str(failure), random.random())  # noqa: S311 - only spreads
            raise
        else:
            self.breaker.on_success()
            self._note(connection)
            return connection
        finally:
            self.breaker.on_given_up()
            self._tried.set()
            self._tried = trio.Event()

    def _note(self, connection: RpcConnection) -> None:
        self._made += 1
        self._open.add(connection)
        if self._lost:
            self._lost -= 1
            self._reconnects += 1
        connection.on_broken = partial(self._forget, connection)
        if connection.broken is not None:
            self._forget(connection, connection.broken)

    def _forget(self, connection: RpcConnection, reason: str) -> None:
        self._open.discard(connection)
        self._lost += reason != CLOSED

    async def look(self) -> None:
        """Find out how it is, unless that is known; `problem` tells afterwards."""
        if self.breaker.wait_s(trio.current_time()) > 0:
            return
        async with self._control_turn:
            try:
                if self._control is None or self._control.broken is not None:
                    self._control = None
                    self._control = await self.connect()
                    result = await self._control.call("initialize", {}, timeout_s=CONTROL_TIMEOUT_S)
                    said = msgspec.json.decode(result, type=Initialized)
                    self.protocol_version = said.server_capabilities.protocol_version
            except ConnectFailed:
                pass  # the breaker knows
            except (ConnectionLost, RpcFailed, msgspec.DecodeError) as error:
                self._distrust(f"it does not answer as a CodeBeaker server does: {error}")

    async def close_session(self, session_id: str) -> None:
        """Have a session closed whose own connection will not do it. What fails is left to its expiry."""
        async with self._control_turn:
            try:
                if self._control is None or self._control.broken is not None:
                    if self.problem is not None:
                        return
                    self._control = None
                    self._control = await self.connect()
                params = CloseSession(session_id, session_id)
                await self._control.call("session.close", params, timeout_s=CONTROL_TIMEOUT_S)
            except (ConnectFailed, ConnectionLost, RpcFailed) as error:
                log.debug("session %s was not closed: %s", session_id, error)

    def _distrust(self, reason: str) -> None:
        if self._control is not None:
            self._control.drop(reason)
        self.breaker.on_failure(trio.current_time(), reason, random.random())  # noqa: S311
