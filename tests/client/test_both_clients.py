"""What holds for the trio client and for the blocking one alike."""

from __future__ import annotations

import errno
import grp
import inspect
import pwd
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import trio

from loopaid.client import BlockingClient, Client, open_client
from loopaid.client.places import unreachable
from loopaid.client.results import Records
from loopaid.errors import DaemonUnreachable, ErrorCode, ErrorInfo, LoopaidError
from loopaid.model import (
    BatchOptions,
    BatchState,
    BatchSummary,
    ItemStatus,
    Language,
    LatencySummary,
    PoolStatistics,
    RequestedOptions,
    Shape,
)
from loopaid.wire.frames import FrameKind, encode_frame
from loopaid.wire.messages import (
    ActivateArtifact,
    ArtifactInfo,
    ArtifactList,
    BatchAccepted,
    BatchList,
    BatchPlan,
    CancelBatch,
    CancelRequested,
    CheckBatch,
    DrainPool,
    EncodedExecResult,
    Exec,
    GetLogInfo,
    GetRecordStats,
    Hello,
    ItemsChunk,
    ListArtifacts,
    ListBatches,
    ListPools,
    ListRecords,
    ListTasks,
    LogInfo,
    LogPruned,
    PoolDrained,
    PoolList,
    PruneLog,
    PushArtifact,
    PutTask,
    RecordFilter,
    RecordPage,
    RecordStats,
    RetryBatch,
    ShowArtifact,
    ShowBatch,
    ShowTask,
    SubmitBatch,
    TaskInfo,
    TaskList,
    WaitBatch,
    WarmPool,
    encode,
)

Ask = Callable[..., Awaitable[Any]]

TASK = TaskInfo(name="t", uid=1, sampling_rate=0.5, created_at=1.0)
ARTIFACT = ArtifactInfo(
    task="t",
    uid=1,
    version=2,
    language=Language.PYTHON,
    shape=Shape.FUNCTION,
    digest="d",
    created_at=1.0,
    active=True,
)
ACCEPTED = BatchAccepted(batch_id="b1", total=2, state=BatchState.QUEUED, durability="durable")
CANCELLED = CancelRequested(batch_id="b1", state=BatchState.CANCELLED)
PLAN = BatchPlan(
    task="t",
    version=1,
    is_new=True,
    language=Language.PYTHON,
    shape=Shape.SCRIPT,
    digest="d",
    total=2,
    options=BatchOptions(timeout_ms=5),
    sampling_rate=1.0,
)
POOL = PoolStatistics(language="python", size_max=20, total=1, spares=1)
DRAINED = PoolDrained(closed=1, pools=[POOL])
NO_RECORDS = RecordPage(batches=[], blocks=[], cursor="b0:7", durable=True)
SUMS = RecordStats(
    batches=0,
    items=0,
    by_status={},
    success_count=0,
    failure_count=0,
    sampled_count=0,
    ran=0,
    latency_ms=LatencySummary(),
    tasks=[],
)
PRUNED = LogPruned(segments=2, bytes=99, batches=3, blocked_by="b1")
LOG = LogInfo(
    directory="/x",
    durability="durable",
    segments=1,
    bytes=2,
    frames=3,
    commits=4,
    commit_seconds=5.0,
    records=6,
    batches=7,
    torn_tails=0,
    free_bytes=8,
    health="healthy",
)


async def ask_with_trio(path: Path | None, verb: str, *args: Any, **kwargs: Any) -> Any:
    async with open_client(path) as client:
        return await getattr(client, verb)(*args, **kwargs)


async def ask_blocking(path: Path | None, verb: str, *args: Any, **kwargs: Any) -> Any:
    def ask() -> Any:
        with BlockingClient(path) as client:
            return getattr(client, verb)(*args, **kwargs)

    return await trio.to_thread.run_sync(ask)


@pytest.fixture(params=[ask_with_trio, ask_blocking], ids=["trio", "blocking"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Connect, call one verb, disconnect."""
    chosen: Ask = request.param
    return chosen


VERBS = [
    ("put_task", ["t"], {"sampling_rate": 0.5}, PutTask(name="t", sampling_rate=0.5), TASK, TASK),
    ("create_task", ["t"], {}, PutTask(name="t", create_only=True), TASK, TASK),
    ("list_tasks", [], {}, ListTasks(), TaskList(tasks=[TASK]), [TASK]),
    ("show_task", ["t"], {}, ShowTask(name="t"), TASK, TASK),
    (
        "push_artifact",
        ["t", "result = 1"],
        {"shape": "script", "activate": False, "if_changed": True},
        PushArtifact(task="t", source="result = 1", shape=Shape.SCRIPT, activate=False, if_changed=True),
        ARTIFACT,
        ARTIFACT,
    ),
    ("list_artifacts", ["t"], {}, ListArtifacts(task="t"), ArtifactList(artifacts=[ARTIFACT]), [ARTIFACT]),
    ("show_artifact", ["t"], {}, ShowArtifact(task="t"), ARTIFACT, ARTIFACT),
    ("show_artifact", ["t", 2], {}, ShowArtifact(task="t", version=2), ARTIFACT, ARTIFACT),
    ("activate_artifact", ["t", 2], {}, ActivateArtifact(task="t", version=2), ARTIFACT, ARTIFACT),
    (
        "submit_batch",
        ["t", "ab"],
        {"version": 2, "idempotency_key": "k", "sampling_rate": 1.0, "timeout_ms": 5},
        SubmitBatch(
            task="t",
            items=ItemsChunk(first=0, count=2, inputs=b'"a"\n"b"'),
            version=2,
            idempotency_key="k",
            sampling_rate=1.0,
            options=RequestedOptions(timeout_ms=5),
        ),
        ACCEPTED,
        ACCEPTED,
    ),
    (
        "check_batch",
        ["t", "ab"],
        {"source": "result = 1", "sampling_rate": 1.0, "timeout_ms": 5},
        CheckBatch(task="t", total=2, source="result = 1", sampling_rate=1.0, options=RequestedOptions(timeout_ms=5)),
        PLAN,
        PLAN,
    ),
    ("list_batches", [], {}, ListBatches(), BatchList(batches=[]), []),
    (
        "list_batches",
        [5, "running"],
        {},
        ListBatches(limit=5, state=BatchState.RUNNING),
        BatchList(batches=[]),
        [],
    ),
    (
        "list_batches",
        [],
        {"task": "t", "before": "b9"},
        ListBatches(task="t", before="b9"),
        BatchList(batches=[]),
        [],
    ),
    ("retry_batch", ["b1"], {}, RetryBatch(batch_id="b1"), ACCEPTED, ACCEPTED),
    ("retry_batch", ["b1", "all"], {}, RetryBatch(batch_id="b1", only="all"), ACCEPTED, ACCEPTED),
    ("list_records", [], {}, ListRecords(), NO_RECORDS, Records([], "b0:7")),
    (
        "list_records",
        [],
        {"limit": 5, "cursor": "b1:3", "as_completed": False, "task": "t", "statuses": ["timeout"], "since": 1.5},
        ListRecords(
            filter=RecordFilter(task="t", statuses=[ItemStatus.TIMEOUT], since=1.5),
            limit=5,
            order="submission",
            cursor="b1:3",
        ),
        NO_RECORDS,
        Records([], "b0:7"),
    ),
    ("record_stats", [], {"until": 2}, GetRecordStats(filter=RecordFilter(until=2.0)), SUMS, SUMS),
    ("cancel_batch", ["b1", "enough"], {}, CancelBatch(batch_id="b1", reason="enough"), CANCELLED, CANCELLED),
    ("list_pools", [], {}, ListPools(), PoolList(pools=[POOL]), [POOL]),
    ("warm_pool", ["python", 3], {}, WarmPool(language=Language.PYTHON, count=3), POOL, POOL),
    ("drain_pool", [], {}, DrainPool(), DRAINED, DRAINED),
    ("drain_pool", ["python"], {}, DrainPool(language=Language.PYTHON), DRAINED, DRAINED),
    ("log_info", [], {}, GetLogInfo(), LOG, LOG),
    ("prune_log", [], {}, PruneLog(), PRUNED, PRUNED),
    ("prune_log", [5, 0.5], {}, PruneLog(bytes_max=5, days_max=0.5), PRUNED, PRUNED),
]


@pytest.mark.parametrize(
    ("verb", "args", "kwargs", "request_sent", "reply", "returned"), VERBS, ids=[verb[0] for verb in VERBS]
)
async def test_a_verb_is_one_request_and_its_reply(
    serve: Any, ask: Ask, verb: str, args: Any, kwargs: Any, request_sent: Any, reply: Any, returned: Any
) -> None:
    async def script(daemon: Any) -> None:
        request_id, request = await daemon.request()
        assert request == request_sent
        await daemon.send(daemon.connection.reply(request_id, reply))

    assert await ask(serve(script), verb, *args, **kwargs) == returned


@pytest.mark.parametrize(("verb", "request_type"), [("show_batch", ShowBatch), ("wait_batch", WaitBatch)])
async def test_a_batch_is_shown_as_a_summary(
    serve: Any, ask: Ask, batch: BatchSummary, verb: str, request_type: Any
) -> None:
    async def script(daemon: Any) -> None:
        request_id, request = await daemon.request()
        assert request == request_type(batch_id="last")
        await daemon.send(daemon.connection.reply(request_id, batch))

    assert await ask(serve(script), verb, "last") == batch


async def test_exec_answers_the_one_result(serve: Any, ask: Ask, blocks: Any) -> None:
    async def script(daemon: Any) -> None:
        request_id, request = await daemon.request()
        options = RequestedOptions(priority=9)
        assert request == Exec(task="t", input=b"[21]", item_id="x", options=options, force_validation=True)
        message = blocks.message(blocks.rows(0, b"42"), ids=["x"], forced=[0])
        await daemon.send(
            daemon.connection.reply(request_id, EncodedExecResult(batch=blocks.batch, block=message, durable=True))
        )

    result = await ask(serve(script), "exec", "t", [21], item_id="x", force_validation=True, priority=9)
    assert (result.output, result.id, result.sampled_for_validation) == (42, "x", True)


async def test_a_refusal_is_raised_as_it_was_told(serve: Any, ask: Ask) -> None:
    async def script(daemon: Any) -> None:
        request_id, _ = await daemon.request()
        refusal = ErrorInfo(code=ErrorCode.QUEUE_FULL, message="1000 wait", path="task", retry_after_ms=250)
        await daemon.send(daemon.connection.error(request_id, refusal))

    with pytest.raises(LoopaidError) as caught:
        await ask(serve(script), "submit_batch", "t", [1])
    error = caught.value
    assert (error.code, error.message, error.path, error.retry_after_ms) == ("QUEUE_FULL", "1000 wait", "task", 250)


@pytest.mark.parametrize(
    ("verb", "args", "kwargs", "code", "path"),
    [
        ("push_artifact", ["t", ""], {"language": "cobol"}, "UNSUPPORTED_LANGUAGE", "language"),
        ("push_artifact", ["t", ""], {"shape": "round"}, "INVALID_REQUEST", "shape"),
        ("warm_pool", ["cobol"], {}, "UNSUPPORTED_LANGUAGE", "language"),
        ("drain_pool", ["cobol"], {}, "UNSUPPORTED_LANGUAGE", "language"),
        ("list_batches", [], {"state": "lost"}, "INVALID_REQUEST", "state"),
        ("list_records", [], {"statuses": ["late"]}, "INVALID_REQUEST", "statuses"),
        ("record_stats", [], {"since": "noon"}, "INVALID_REQUEST", "since"),
        ("retry_batch", ["b1", "some"], {}, "INVALID_REQUEST", "only"),
        ("submit_batch", ["t", [1]], {"max_concurrency": 0}, "INVALID_CONCURRENCY", "options.max_concurrency"),
        ("exec", ["t", float("nan")], {}, "INVALID_REQUEST", "input"),
        ("check_batch", ["t", ["", "x" * 100]], {}, "LIMIT_EXCEEDED", "items[1].input"),
        ("exec", ["t", "x" * 100], {}, "LIMIT_EXCEEDED", "input"),
        ("show_task", ["\udce9"], {}, "INVALID_REQUEST", None),
        ("push_artifact", ["t", "#" * (17 << 20)], {}, "FRAME_TOO_LARGE", None),
    ],
)
async def test_what_cannot_be_asked_is_refused_without_asking(
    serve: Any, ask: Ask, verb: str, args: Any, kwargs: Any, code: str, path: str | None
) -> None:
    async def script(daemon: Any) -> None:
        await daemon.next_event()
        assert await daemon.next_event() is None

    with pytest.raises(LoopaidError) as caught:
        await ask(serve(script, Hello(upload_credit=1 << 20, input_bytes_max=50)), verb, *args, **kwargs)
    assert (caught.value.code, caught.value.path) == (code, path)


# --- finding the daemon


async def test_the_error_lists_every_path_that_was_tried(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / "loopaid" / "loopaid.sock"
    stale.parent.mkdir()
    stale.touch()
    monkeypatch.delenv("LOOPAID_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("loopaid.places.SYSTEM_SOCKET", tmp_path / "system.sock")
    with pytest.raises(DaemonUnreachable) as caught:
        await ask(None, "status")
    assert str(caught.value) == (
        f"no daemon answers; start one with `loopaid &`; tried {stale} (not a socket), "
        f"{tmp_path}/system.sock (there is nothing)"
    )
    assert not caught.value.nothing_there


def stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "there is nothing"),
        (Path.mkdir, "a directory, not a socket"),
        (Path.touch, "not a socket"),
        (stale_socket, "a socket that nobody listens on: its daemon has ended, and the next one replaces it"),
        (lambda path: path.symlink_to("gone"), "a link to gone, which is not there"),
    ],
    ids=["nothing", "directory", "file", "stale", "link"],
)
async def test_what_is_there_instead_of_a_daemon_is_said(
    ask: Ask, tmp_path: Path, make: Callable[[Path], None], told: str
) -> None:
    path = tmp_path / "s"
    make(path)
    with pytest.raises(DaemonUnreachable) as caught:
        await ask(path, "status")
    assert str(caught.value) == f"no daemon answers; start one with `loopaid --socket {path} &`; tried {path} ({told})"
    assert caught.value.nothing_there == (not path.exists())


def test_who_is_kept_out_is_told_for_whom_the_socket_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.touch()
    told = str(unreachable({path: PermissionError(errno.EACCES, "Permission denied")}))
    group, user = grp.getgrgid(path.stat().st_gid).gr_name, pwd.getpwuid(path.stat().st_uid).pw_name
    assert told == (
        "no daemon answers; who may use a daemon is in the group of its socket: `sudo usermod -aG GROUP USER`, and "
        f"log in anew; tried {path} (permission denied: {path} is for {user} and the group {group})"
    )


async def test_a_path_that_is_too_long_is_a_path_that_was_tried(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="path too long"):
        await ask(tmp_path / ("x" * 200), "status")


async def test_a_daemon_that_hangs_up_at_once_is_unreachable(ask: Ask, serve: Any) -> None:
    path = serve(None)
    with pytest.raises(DaemonUnreachable, match=r"/s \(the daemon closed the connection\)"):
        await ask(path, "status")


async def test_something_else_that_listens_there_is_no_daemon(ask: Ask, serve: Any) -> None:
    path = serve(None, greeting=b"220 mail.example.org ESMTP\r\n")
    with pytest.raises(DaemonUnreachable, match="the daemon broke the protocol: a frame of unknown kind"):
        await ask(path, "status")


async def test_a_daemon_of_another_generation_says_so(ask: Ask, serve: Any) -> None:
    later = encode_frame(FrameKind.HELLO, 0, encode(Hello(protocol_min=7, protocol_max=9, software="loopaid 9")))
    with pytest.raises(LoopaidError, match=r"no common protocol generation: .* loopaid 9 speaks 7 to 9") as caught:
        await ask(serve(None, greeting=later), "status")
    assert caught.value.code == ErrorCode.UNSUPPORTED_PROTOCOL


async def test_a_refusal_before_the_greeting_is_raised_as_it_was_told(ask: Ask, serve: Any) -> None:
    info = ErrorInfo(code=ErrorCode.LIMIT_EXCEEDED, message="1024 clients are connected")
    with pytest.raises(LoopaidError, match="LIMIT_EXCEEDED: 1024 clients are connected"):
        await ask(serve(None, greeting=encode_frame(FrameKind.ERROR, 0, encode(info))), "status")


# --- the two are alike


def public(kind: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}


def test_both_clients_have_the_same_verbs_with_the_same_parameters() -> None:
    trio_verbs, blocking_verbs = public(Client), public(BlockingClient)
    assert set(trio_verbs) == set(blocking_verbs)
    for name, verb in trio_verbs.items():
        if callable(verb):
            assert inspect.signature(verb).parameters == inspect.signature(blocking_verbs[name]).parameters, name


def test_every_verb_says_what_it_does() -> None:
    assert [name for name, verb in public(Client).items() if not inspect.getdoc(verb)] == []


def test_the_package_is_typed() -> None:
    assert resources.files("loopaid").joinpath("py.typed").is_file()


def test_the_blocking_client_is_there_without_trio() -> None:
    code = (
        "import sys, loopaid.client; from loopaid.client import BlockingClient; "
        "print(sorted({'trio', 'asyncio', 'rich', 'click'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_package_has_what_it_says_and_nothing_else() -> None:
    import loopaid.client as package

    assert {name: getattr(package, name).__name__ for name in package.__all__} == {
        "BlockingClient": "BlockingClient",
        "Client": "Client",
        "Result": "Result",
        "open_client": "open_client",
    }
    with pytest.raises(AttributeError, match="has no attribute 'AsyncClient'"):
        _ = package.AsyncClient
