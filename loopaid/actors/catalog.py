"""The catalog: tasks and their artifacts, held in memory, written to a journal of their own before it is told."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Final

from loopaid.actors import records
from loopaid.actors.recorder import Recorder
from loopaid.core.shape import detect_shape
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.journal.store import Store
from loopaid.model import TASK_NAME_CHARS_MAX, Artifact, Language, Shape, Task

_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]+(?:/[A-Za-z0-9_.\-]+)*\Z")


class Catalog:
    """What the journal says, applied. Owned by the daemon; the recorder writes what it decides."""

    def __init__(self, recorder: Recorder, wall_time: Callable[[], float], *, source_bytes_max: int) -> None:
        self._recorder = recorder
        self._wall_time = wall_time
        self.source_bytes_max = source_bytes_max
        self._tasks: dict[tuple[int, str], Task] = {}
        self._artifacts: dict[tuple[int, str], list[Artifact]] = {}
        self._active: dict[tuple[int, str], int] = {}

    def __repr__(self) -> str:
        return f"<Catalog {len(self._tasks)} tasks, {sum(map(len, self._artifacts.values()))} artifacts>"

    def replay(self, store: Store) -> None:
        """Take over what the journal holds; once, before anything else."""
        for frame in store.scan():
            match frame.type:
                case records.TASK:
                    self._apply_task(records.decode_task(frame.payload))
                case records.ARTIFACT:
                    self._apply_artifact(records.decode_artifact(frame.payload))
                case records.ACTIVATION:
                    self._apply_activation(records.decode_activation(frame.payload))

    def _apply_task(self, task: Task) -> None:
        self._tasks[task.uid, task.name] = task

    def _apply_artifact(self, artifact: Artifact) -> None:
        self._artifacts.setdefault((artifact.uid, artifact.task), []).append(artifact)

    def _apply_activation(self, activation: records.Activation) -> None:
        self._active[activation.uid, activation.task] = activation.version

    async def committed(self) -> None:
        """Wait until everything that can be seen here is durable."""
        await self._recorder.committed()

    # --- tasks

    def tasks(self, uid: int | None) -> Iterator[Task]:
        """Those of a user, all for None, the oldest first."""
        return (task for task in self._tasks.values() if uid is None or task.uid == uid)

    def task(self, uid: int, name: str) -> Task:
        try:
            return self._tasks[uid, name]
        except KeyError:
            raise LoopaidError(
                ErrorCode.TASK_NOT_FOUND, f"there is no task {name!r}; `loopai task create {name}` makes one"
            ) from None

    def sampling_rate(self, uid: int, name: str) -> float:
        """That of a task; of one that is not there yet, what it would have."""
        known = self._tasks.get((uid, name))
        return known.sampling_rate if known is not None else 0.0

    async def put_task(self, uid: int, name: str, sampling_rate: float | None, *, create_only: bool) -> Task:
        if not _NAME.match(name) or len(name) > TASK_NAME_CHARS_MAX:
            raise LoopaidError(
                ErrorCode.INVALID_REQUEST,
                f"a task's name is 1 to {TASK_NAME_CHARS_MAX} letters, digits and _ . - with / between parts, "
                f"not {name[:TASK_NAME_CHARS_MAX]!r}",
                path="name",
            )
        check_rate(sampling_rate)
        known = self._tasks.get((uid, name))
        if known is not None and create_only:
            raise LoopaidError(ErrorCode.TASK_ALREADY_EXISTS, f"the task {name!r} exists already", path="name")
        if known is not None and sampling_rate in (None, known.sampling_rate):
            return known
        self._recorder.check_accepting()
        rate = sampling_rate if sampling_rate is not None else 0.0
        task = Task(uid, name, rate, known.created_at if known is not None else self._wall_time())
        self._apply_task(task)
        self._recorder.append(records.TASK, records.encode(task))
        await self._recorder.committed()
        return task

    # --- artifacts

    def versions(self, uid: int, name: str) -> list[Artifact]:
        self.task(uid, name)
        return self._artifacts.get((uid, name), [])

    def active_version(self, uid: int, name: str) -> int | None:
        return self._active.get((uid, name))

    def artifact(self, uid: int, name: str, version: int | None) -> Artifact:
        """A version, the active one for None."""
        versions = self.versions(uid, name)
        wanted = version if version is not None else self.active_version(uid, name)
        if wanted is None:
            raise LoopaidError(
                ErrorCode.ARTIFACT_NOT_FOUND,
                f"the task {name!r} has no active artifact; `loopai artifact push {name} FILE` makes one",
            )
        if not 1 <= wanted <= len(versions):
            raise LoopaidError(
                ErrorCode.ARTIFACT_NOT_FOUND, f"the task {name!r} has {len(versions)} versions and no {wanted}"
            )
        return versions[wanted - 1]

    def propose(
        self, uid: int, name: str, source: str, language: Language, shape: Shape | None, *, if_changed: bool
    ) -> tuple[Artifact, bool]:
        """What `push` would answer, with nothing stored. The task need not be there."""
        versions = self._artifacts.get((uid, name), [])
        if (size := len(source.encode("utf-8", "surrogatepass"))) > self.source_bytes_max:
            raise LoopaidError(
                ErrorCode.LIMIT_EXCEEDED,
                f"the source has {size} bytes, more than {self.source_bytes_max}",
                path="source",
            )
        shape = shape or detect_shape(source, language)
        digest = hashlib.sha256(f"{language}\0{shape}\0{source}".encode()).hexdigest()
        if if_changed and versions and versions[-1].digest == digest:
            return versions[-1], False
        version = len(versions) + 1
        return Artifact(uid, name, version, language, shape, source, digest, self._wall_time()), True

    async def push(
        self,
        uid: int,
        name: str,
        source: str,
        language: Language,
        shape: Shape | None,
        *,
        activate: bool,
        if_changed: bool,
    ) -> tuple[Artifact, bool]:
        """Store a version; with `if_changed` answer the last one when it is the same, and False."""
        self.task(uid, name)
        artifact, created = self.propose(uid, name, source, language, shape, if_changed=if_changed)
        self._recorder.check_accepting()
        if created:
            self._apply_artifact(artifact)
            self._recorder.append(records.ARTIFACT, records.encode(artifact))
        if activate and self.active_version(uid, name) != artifact.version:
            self._activate(artifact)
        await self._recorder.committed()
        return artifact, created

    async def activate(self, uid: int, name: str, version: int) -> Artifact:
        artifact = self.artifact(uid, name, version)
        self._recorder.check_accepting()
        self._activate(artifact)
        await self._recorder.committed()
        return artifact

    def _activate(self, artifact: Artifact) -> None:
        activation = records.Activation(artifact.uid, artifact.task, artifact.version, self._wall_time())
        self._apply_activation(activation)
        self._recorder.append(records.ACTIVATION, records.encode(activation))


def check_rate(rate: float | None) -> None:
    if rate is not None and not 0.0 <= rate <= 1.0:
        raise LoopaidError(
            ErrorCode.INVALID_REQUEST, f"sampling_rate must be between 0 and 1, not {rate}", path="sampling_rate"
        )
