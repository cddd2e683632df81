"""Sessions on a CodeBeaker server: created one at a time, each over a connection of its own.

The server is not asked anything before somebody wants a session or looks how it is. What it cannot do, and why it
cannot be reached, stands in `problem`; both are found out again by the next who asks, so it recovers by itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec
import trio

from loopaid.config import CodeBeakerSection, Config, LimitsSection
from loopaid.errors import ConfigError, ConnectionLost, ErrorCode, ErrorInfo
from loopaid.model import Isolation, Language, ServerStatistics, Shape
from loopaid.providers.base import LoadFailed, Program, SessionEnded, StartFailed, Window
from loopaid.providers.codebeaker.endpoint import CLOSED, ConnectFailed, Endpoint, RpcFailed
from loopaid.providers.codebeaker.server import Server
from loopaid.providers.codebeaker.session import CodeBeakerSession, Terms
from loopaid.providers.codebeaker.windows import BUDGET_S, REMOTES, Settings
from loopaid.providers.local.protocol import SessionLimits
from loopaid.wire.codebeaker import CreateSession, Runtime, SessionCreated, Trouble, reason_of, trouble_of
from loopaid.wire.rows import Row

if TYPE_CHECKING:
    from loopaid.providers.codebeaker.connection import RpcConnection

log = logging.getLogger(__name__)

CREATE_TIMEOUT_S: Final = 60.0
"""A container to start, or a virtual environment to make, behind those of others."""
REPLY_SLACK_S: Final = 30.0
MISCONFIGURED_S: Final = 30.0
"""So long nobody asks again for a language that the server says it cannot run."""
IDLE_SHARE: Final = 0.45
"""Of the server's idle time: it forgets every other use of a session."""
LIFETIME_SHARE: Final = 0.8
CREDENTIAL: Final = "codebeaker-token"
_CONFINED: Final = {"Deno": "with the files in /tmp, and those of other sessions among them,"}
_HELLO: Final = {
    Language.PYTHON: "def main(input_data):\n    return input_data\n",
    Language.JAVASCRIPT: "function main(input_data) {\n    return input_data;\n}\n",
    Language.GO: "func Main(input any) any {\n\treturn input\n}\n",
}


class CodeBeakerProvider:
    """Implements `loopaid.providers.base.Provider`. Use `open_codebeaker_provider`."""

    sandbox = "codebeaker"
    memory = "the server's"
    window_cost_s = 0.25

    def __init__(self, config: Config, endpoint: Endpoint, nursery: trio.Nursery, *, reply_slack_s: float) -> None:
        section = config.codebeaker
        self._tmp_bytes = config.sandbox.tmp_bytes
        self._server = Server(endpoint, nursery, connect_timeout_s=section.connect_timeout_s)
        self.notes = _notes(section, endpoint)
        self._section = section
        self._limits = config.limits
        self._terms = Terms(
            section.rerun_uncertain,
            reply_slack_s,
            section.session_idle_minutes * 60 * IDLE_SHARE,
            section.session_lifetime_minutes * 60 * LIFETIME_SHARE,
        )
        self._creating = trio.Lock()
        self._versions: dict[str, str] = {}
        self._cannot: dict[Language, tuple[str, float]] = {}

    def __repr__(self) -> str:
        return f"<CodeBeakerProvider {self._server!r}>"

    @property
    def server(self) -> ServerStatistics:
        return self._server.statistics()

    def window_s(self, isolation: Isolation) -> float:
        return BUDGET_S

    def use_limits(self, limits: LimitsSection) -> None:
        self._limits = limits

    def problem(self, language: Language, isolation: Isolation = Isolation.SESSION) -> ErrorInfo | None:
        """Every isolation is there."""
        if language not in REMOTES:
            return ErrorInfo(
                code=ErrorCode.UNSUPPORTED_LANGUAGE,
                message=f"{language} cannot be sent to a CodeBeaker server by this version; {', '.join(REMOTES)} can",
            )
        why, since = self._cannot.get(language, ("", 0.0))
        if why and trio.current_time() < since + MISCONFIGURED_S:
            return ErrorInfo(code=ErrorCode.PROVIDER_UNAVAILABLE, message=f"{self._server.endpoint.url}: {why}")
        if self._server.problem is not None:
            retry_after_ms = int(self._server.retry_after_s * 1000)
            return ErrorInfo(
                code=ErrorCode.PROVIDER_UNAVAILABLE, message=self._server.problem, retry_after_ms=retry_after_ms
            )
        return None

    def versions(self) -> dict[str, str]:
        return dict(self._versions)

    async def look(self) -> None:
        """Find out whether the server can be reached, so that `problem` tells. Takes connect_timeout_s at most."""
        await self._server.look()

    async def start(self, language: Language, session_id: str) -> CodeBeakerSession:
        if language not in REMOTES:
            raise StartFailed(f"{language} cannot be sent to a CodeBeaker server")
        async with self._creating:
            try:
                connection = await self._server.connect()
            except ConnectFailed as failure:
                raise StartFailed(str(failure)) from None
            try:
                session = await self._created(connection, language, session_id)
            except BaseException:
                connection.drop(CLOSED)
                raise
        if language not in self._versions:
            await self._greet(session)
        return session

    async def _created(self, connection: RpcConnection, language: Language, session_id: str) -> CodeBeakerSession:
        runtime = self._runtime(language)
        params = CreateSession(
            getattr(self._section.language_mapping, language),
            runtime,
            self._section.session_idle_minutes,
            self._section.session_lifetime_minutes,
            self._section.memory_mb,
            self._section.cpu_shares,
        )
        try:
            result = await connection.call("session.create", params, timeout_s=CREATE_TIMEOUT_S)
            created = msgspec.json.decode(result, type=SessionCreated)
        except (ConnectionLost, msgspec.DecodeError) as error:
            raise StartFailed(f"no session was created: {error}") from None
        except RpcFailed as failure:
            reason = reason_of(failure.error)
            if trouble_of(failure.error) is Trouble.MISCONFIGURED:
                self._cannot[language] = reason, trio.current_time()
            raise StartFailed(reason) from None
        self._cannot.pop(language, None)
        if (runtime is Runtime.DOCKER) != bool(created.container_id):
            log.warning("session %s was asked for on %s, which its reply does not look like", session_id, runtime)
        return CodeBeakerSession(
            session_id,
            created.session_id,
            connection,
            self._server,
            self._terms,
            self._settings(runtime),
            language=language,
            remote_language=params.language,
            runtime=runtime,
            version=self._versions.get(language, ""),
        )

    async def _greet(self, session: CodeBeakerSession) -> None:
        """Run one item, once per language: a server that cannot do that is found out before anybody's items are sent.
        Raises StartFailed."""
        window = Window("hello", 0, 1, 1, b"1", None, 10_000, False)
        answers: list[Row] = []
        try:
            hello = Program(0, "", session.language, Shape.FUNCTION, _HELLO[session.language])
            await session.load(hello, timeout_s=10.0)
            await session.run(window, lambda _, __, rows: answers.extend(rows))
            if [row.output for row in answers] != [b"1"]:
                raise StartFailed(f"a program that returns its input answered {answers!r}")
        except (SessionEnded, LoadFailed, StartFailed) as error:
            reason = f"programs do not run there: {error}"
            if session.is_connected:  # else it is no fault of the server's
                self._cannot[session.language] = reason, trio.current_time()
            await session.aclose()
            raise StartFailed(reason) from None
        except BaseException:
            await session.aclose()
            raise
        self._versions[session.language] = session.version

    def _settings(self, runtime: Runtime) -> Settings:
        """A container's memory is for all that is in it: an allocation shall fail before the kernel ends a process."""
        limits, memory_bytes = self._limits, self._section.memory_mb << 20
        data = memory_bytes - memory_bytes // 8 if runtime is Runtime.DOCKER else memory_bytes
        return Settings(
            SessionLimits(limits.output_bytes_max, limits.stdout_bytes_max, limits.stderr_bytes_max),
            {"DATA": data, "FSIZE": self._tmp_bytes, "CORE": 0},
        )

    def _runtime(self, language: Language) -> Runtime:
        return Runtime(getattr(self._section.runtime_mapping, language, Runtime.DOCKER))


def _notes(section: CodeBeakerSection, endpoint: Endpoint) -> Sequence[str]:
    notes = [
        f"programs in {language} run {_CONFINED.get(runtime, 'UNCONFINED')} on the CodeBeaker server: runtime {runtime}"
        for language, runtime in msgspec.structs.asdict(section.runtime_mapping).items()
        if runtime != "Docker"
    ]
    host = urlsplit(endpoint.url).hostname
    if endpoint.token and not endpoint.is_secure and host not in ("localhost", "127.0.0.1", "::1"):
        notes.append(f"the token for {endpoint.url} is sent in the clear: use wss://")
    return notes


def read_token(token_file: str, environ: Mapping[str, str]) -> str:
    """The bearer token from its file, else from the credential that systemd hands over; "" when there is none.

    Raises ConfigError, without a word of what the file says.
    """
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    path = Path(token_file) if token_file else Path(credentials, CREDENTIAL) if credentials else None
    if path is None or (not token_file and not path.exists()):
        return ""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"codebeaker.token_file: {path} cannot be read as a token: {type(error).__name__}") from None
    if not token.isprintable() or not token or " " in token:
        raise ConfigError(f"codebeaker.token_file: {path} holds no token, which is one word")
    return token


@asynccontextmanager
async def open_codebeaker_provider(
    config: Config, *, environ: Mapping[str, str] = os.environ, reply_slack_s: float = REPLY_SLACK_S
) -> AsyncIterator[CodeBeakerProvider]:
    """Sessions on the server that the configuration names. Leaving ends all connections. Raises ConfigError."""
    section = config.codebeaker
    endpoint = Endpoint(section.url, read_token(section.token_file, environ))
    async with trio.open_nursery() as nursery:
        try:
            yield CodeBeakerProvider(config, endpoint, nursery, reply_slack_s=reply_slack_s)
        finally:
            nursery.cancel_scope.cancel()
