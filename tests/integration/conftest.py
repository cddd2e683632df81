"""A daemon in the process of the tests: real journals, a real socket, real programs in the real sandbox."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from loopaid.actors.batch import Batch
from loopaid.client import Client, Result, open_client
from loopaid.config import Config, load_config
from loopaid.daemon.app import Daemon, open_daemon
from loopaid.daemon.server import open_listener
from loopaid.errors import LoopaidError
from loopaid.model import LOCAL, BatchSummary, Isolation, Language, PoolStatistics, pool_name
from loopaid.providers.local import provider
from loopaid.providers.local.session import LocalSession
from loopaid.testing.other_users import connected_as
from loopaid.testing.reply_types import REPLY_TYPES
from loopaid.wire.connection import ClientConnection
from loopaid.wire.events import Answer, CreditReceived, ErrorReceived, HelloReceived
from loopaid.wire.frames import Frame, FrameReader
from loopaid.wire.messages import Hello, Request, decode_reply

PATIENCE_S = 100
"""Longer than any test takes, even on a machine that is busy with something else."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "settings(section__key=value): configuration of the test's daemon")


@dataclass(frozen=True)
class Ran:
    """A batch that ended, its results in the order of its items."""

    results: list[Result]
    summary: BatchSummary

    @property
    def statuses(self) -> list[str]:
        return [str(result.status) for result in self.results]

    @property
    def outputs(self) -> list[Any]:
        return [result.output for result in self.results]

    @property
    def errors(self) -> list[tuple[str, str] | None]:
        return [result.error and (result.error.type, result.error.message) for result in self.results]

    @property
    def session_ids(self) -> set[str]:
        return {result.session_id for result in self.results}


class Inside:
    """What no client sees of the daemon: processes, and events to wait for."""

    def __init__(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, language: Language) -> None:
        self.daemon = daemon
        self.language = language
        self.opened = trio.Event()
        """A batch was opened."""
        add = daemon.batches.add

        def noted(batch: Batch) -> None:
            add(batch)
            self.opened.set()

        monkeypatch.setattr(daemon.batches, "add", noted)

    def batch(self, batch_id: str = "last") -> Batch:
        return self.daemon.batches.find(None, batch_id)

    async def until(self, batch_id: str, condition: Callable[[Batch], bool]) -> None:
        """Wait until something that is durable of a batch makes `condition` true."""
        batch = self.batch(batch_id)
        while True:
            changed = batch.changed
            if condition(batch):
                return
            await changed.wait()

    async def recorded(self, batch_id: str, count: int) -> None:
        await self.until(batch_id, lambda batch: batch.log.recorded >= count)

    async def ended(self, batch_id: str) -> BatchSummary:
        """Unlike the verb `wait`, this is nobody who watches the batch."""
        await self.until(batch_id, lambda batch: batch.state.is_final)
        return self.batch(batch_id).summary()

    def blocks(self, batch_id: str = "last") -> int:
        """How many frames of the log hold the records of a batch."""
        return len(self.batch(batch_id).log.block_positions())

    @property
    def pool(self) -> PoolStatistics:
        provider = self.daemon.config.execution.provider
        return self.daemon.pools.statistics(pool_name(LOCAL if provider == "standard" else provider, self.language))

    @property
    def sessions(self) -> dict[str, LocalSession]:
        """Those that are running."""
        return dict(self.daemon.pools._actors[self.language]._sessions)

    async def gone(self, session: LocalSession) -> None:
        """Wait until the process of a session has ended."""
        try:
            pidfd = os.pidfd_open(session.pid)
        except ProcessLookupError:
            return
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)


class Meetings:
    """Items that end when enough processes have come to the same meeting: they run at the same time, or until their
    timeout, however slow the machine. Their daemon has `sandbox.kind = "none"`, so that they see where they meet."""

    source = """
import os, time

def main(value):
    if isinstance(value, dict):
        open(os.path.join(value["at"], str(os.getpid())), "w").close()
        while len(os.listdir(value["at"])) < value["of"]:
            time.sleep(0.001)
    return value
"""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0

    def of(self, processes: int) -> dict[str, object]:
        """The input of an item that waits until it is run in so many processes."""
        self._count += 1
        place = self._directory / f"meeting-{self._count}"
        place.mkdir()
        return {"at": str(place), "of": processes}

    def join(self, meeting: dict[str, object]) -> None:
        """Come to it as one of its processes."""
        Path(str(meeting["at"]), "the test").touch()


class RawClient:
    """Speaks the protocol by hand, or garbage."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.connection = ClientConnection(Hello(software="a test"))
        self.frames = FrameReader()
        self._events: deque[Any] = deque()

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def event(self) -> Any:
        """What the daemon said next; None when it closed the connection."""
        while not self._events:
            data = await self._receive()
            if not data:
                return None
            self._events.extend(self.connection.receive_data(data))
        return self._events.popleft()

    async def greet(self) -> Hello:
        await self.send(self.connection.hello())
        event = await self.event()
        assert isinstance(event, HelloReceived)
        return event.hello

    async def answer(self) -> Answer:
        """The next event that is not about credit."""
        while isinstance(event := await self.event(), CreditReceived):
            pass
        return event

    async def ask(self, request: Request) -> Any:
        """Send a request and wait for its reply, as nothing else is under way. Raises LoopaidError."""
        request_id, data = self.connection.request(request)
        await self.send(data)
        event = await self.answer()
        assert event.request_id == request_id
        if isinstance(event, ErrorReceived):
            raise LoopaidError.from_info(event.info)
        return decode_reply(event.body, REPLY_TYPES[type(request)])

    async def frames_to_the_end(self) -> list[Frame]:
        """All that the daemon sends until it closes the connection."""
        frames: list[Frame] = []
        while data := await self._receive():
            frames += self.frames.feed(data)
        return frames

    async def _receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some())
        except trio.BrokenResourceError:
            return b""


Push = Callable[..., Awaitable[str]]
Run = Callable[..., Awaitable[Ran]]
OpenDaemon = Callable[[], AbstractAsyncContextManager[Daemon]]
OpenRaw = Callable[[], AbstractAsyncContextManager[RawClient]]
AsUser = Callable[..., AbstractAsyncContextManager[RawClient]]


@pytest.fixture(scope="session", autouse=True)
def compilers_are_ready(compilers: None) -> None:
    """Before the first daemon starts."""


@pytest.fixture(scope="session", autouse=True)
def probe_once() -> Iterator[None]:
    """The sandbox of one configuration is tried once, not for each of the daemons: that is most of their start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provider, "find_parts", functools.cache(provider.find_parts))
        yield


@pytest.fixture
def isolation() -> Isolation:
    """Of batches that do not say; test modules that hold at several levels define this over again, with `params`."""
    return Isolation.SESSION


@pytest.fixture
def language() -> Language:
    """Of the programs that are pushed, unless the test says otherwise."""
    return Language.PYTHON


@pytest.fixture
def config(request: pytest.FixtureRequest, tmp_path: Path, isolation: Isolation) -> Config:
    """The defaults, and over them the test's `settings`; of several marks the one nearest to the test counts."""
    settings: dict[str, object] = {"execution__isolation": isolation}
    for mark in reversed(list(request.node.iter_markers("settings"))):
        settings |= mark.kwargs
    environ = {f"LOOPAID_{key.upper()}": str(value) for key, value in settings.items()}
    return load_config(None, environ, system_file=tmp_path / "no-such-file").config


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def open_served(config: Config, tmp_path: Path, socket_path: Path) -> OpenDaemon:
    """For tests that start their daemon themselves, and again."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Daemon]:
        async with open_daemon(config, tmp_path / "state") as daemon, open_listener(daemon, socket_path):
            yield daemon

    return opened


@pytest.fixture
async def daemon(open_served: OpenDaemon) -> AsyncIterator[Daemon]:
    async def give_up() -> None:
        await trio.sleep(PATIENCE_S)
        raise TimeoutError(f"the test takes longer than {PATIENCE_S} s")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        async with open_served() as daemon:
            yield daemon
        nursery.cancel_scope.cancel()


@pytest.fixture
def inside(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, language: Language) -> Inside:
    return Inside(daemon, monkeypatch, language)


@pytest.fixture
def meetings(tmp_path: Path) -> Meetings:
    return Meetings(tmp_path)


@pytest.fixture
async def client(daemon: Daemon, socket_path: Path) -> AsyncIterator[Client]:
    async with open_client(socket_path) as client:
        yield client


@pytest.fixture
def open_raw(socket_path: Path) -> OpenRaw:
    """Connect without greeting, for tests that start their daemon themselves."""

    @asynccontextmanager
    async def connected() -> AsyncIterator[RawClient]:
        async with await trio.open_unix_socket(socket_path) as stream:
            yield RawClient(stream)

    return connected


@pytest.fixture
def connect(daemon: Daemon, open_raw: OpenRaw) -> OpenRaw:
    """Connect to the test's daemon without greeting."""
    return open_raw


@pytest.fixture
def as_user(daemon: Daemon, socket_path: Path) -> AsUser:
    """Connect to the test's daemon as another user, and be greeted."""

    @asynccontextmanager
    async def connected(uid: int, **groups: Any) -> AsyncIterator[RawClient]:
        with connected_as(socket_path, uid, **groups) as client:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(client.dup())) as stream:
                raw = RawClient(stream)
                await raw.greet()
                yield raw

    return connected


@pytest.fixture
def push(client: Client, language: Language) -> Push:
    """Make a program the active artifact of a task; answers the task's name."""

    async def pushed(source: str, task: str = "t", *, sampling_rate: float | None = None) -> str:
        await client.put_task(task, sampling_rate=sampling_rate)
        await client.push_artifact(task, source, language=language, if_changed=True)
        return task

    return pushed


@pytest.fixture
def run(client: Client, push: Push) -> Run:
    """Push a program and run a batch of it to its end."""

    async def ran(source: str, items: Iterable[object], task: str = "t", **options: Any) -> Ran:
        await push(source, task)
        async with client.run_batch(task, items, as_completed=False, **options) as batch:
            results = [result async for result in batch]
        return Ran(results, batch.summary)

    return ran
