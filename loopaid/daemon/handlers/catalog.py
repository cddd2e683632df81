"""Tasks and artifacts. A task is named within its owner; an admin names another's as `UID:name`."""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

from loopaid.daemon.app import Daemon
from loopaid.daemon.connection import Call
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import Artifact, Language, Task
from loopaid.wire import messages as m

UID_MAX: Final = 2**32 - 2
"""The one above means nobody."""
_OWNED: Final = re.compile("([0-9]{1,10}):(.*)", re.DOTALL)


def owner_of(call: Call, name: str) -> tuple[int, str]:
    """The (uid, task name) that a reference means."""
    owner = _OWNED.fullmatch(name)
    if owner is None:
        return call.peer.uid, name
    uid = int(owner[1])
    if uid > UID_MAX or call.peer.scope not in (None, uid):
        raise LoopaidError(ErrorCode.TASK_NOT_FOUND, f"there is no task {name!r}")
    return uid, owner[2]


async def put_task(daemon: Daemon, call: Call, request: m.PutTask) -> m.TaskInfo:
    uid, name = owner_of(call, request.name)
    task = await daemon.catalog.put_task(uid, name, request.sampling_rate, create_only=request.create_only)
    return _task_info(daemon, task)


def list_tasks(daemon: Daemon, call: Call, request: m.ListTasks) -> m.TaskList:
    page = islice(daemon.catalog.tasks(call.peer.scope), request.cursor, request.cursor + m.LISTED_MAX)
    return m.TaskList(tasks=[_task_info(daemon, task) for task in page])


def show_task(daemon: Daemon, call: Call, request: m.ShowTask) -> m.TaskInfo:
    return _task_info(daemon, daemon.catalog.task(*owner_of(call, request.name)))


def check_language(daemon: Daemon, language: Language) -> None:
    problem = daemon.provider.problem(language)
    if problem is not None and problem.code == ErrorCode.UNSUPPORTED_LANGUAGE:
        raise LoopaidError.from_info(problem)


async def push_artifact(daemon: Daemon, call: Call, request: m.PushArtifact) -> m.ArtifactInfo:
    uid, name = owner_of(call, request.task)
    check_language(daemon, request.language)
    artifact, created = await daemon.catalog.push(
        uid,
        name,
        request.source,
        request.language,
        request.shape,
        activate=request.activate,
        if_changed=request.if_changed,
    )
    return _artifact_info(daemon, artifact, created=created)


def list_artifacts(daemon: Daemon, call: Call, request: m.ListArtifacts) -> m.ArtifactList:
    versions = daemon.catalog.versions(*owner_of(call, request.task))
    page = versions[request.cursor : request.cursor + m.LISTED_MAX]
    return m.ArtifactList(artifacts=[_artifact_info(daemon, artifact) for artifact in page])


def show_artifact(daemon: Daemon, call: Call, request: m.ShowArtifact) -> m.ArtifactInfo:
    artifact = daemon.catalog.artifact(*owner_of(call, request.task), request.version)
    return _artifact_info(daemon, artifact, with_source=True)


async def activate_artifact(daemon: Daemon, call: Call, request: m.ActivateArtifact) -> m.ArtifactInfo:
    artifact = await daemon.catalog.activate(*owner_of(call, request.task), request.version)
    return _artifact_info(daemon, artifact)


def _task_info(daemon: Daemon, task: Task) -> m.TaskInfo:
    return m.TaskInfo(
        name=task.name,
        uid=task.uid,
        sampling_rate=task.sampling_rate,
        created_at=task.created_at,
        active_version=daemon.catalog.active_version(task.uid, task.name),
        versions=len(daemon.catalog.versions(task.uid, task.name)),
    )


def _artifact_info(
    daemon: Daemon, artifact: Artifact, *, created: bool = False, with_source: bool = False
) -> m.ArtifactInfo:
    return m.ArtifactInfo(
        task=artifact.task,
        uid=artifact.uid,
        version=artifact.version,
        language=artifact.language,
        shape=artifact.shape,
        digest=artifact.digest,
        created_at=artifact.created_at,
        active=daemon.catalog.active_version(artifact.uid, artifact.task) == artifact.version,
        created=created,
        source=artifact.source if with_source else None,
    )
