"""Which reply answers which request: what a client that is written by hand has to know."""

from __future__ import annotations

from typing import Final

import msgspec

from loopaid.model import BatchSummary, PoolStatistics
from loopaid.wire.messages import (
    ActivateArtifact,
    AddItems,
    ArtifactInfo,
    ArtifactList,
    BatchAccepted,
    BatchList,
    BatchOpened,
    CancelBatch,
    CancelRequested,
    CloseBatch,
    DaemonStatus,
    DrainPool,
    Exec,
    ExecResult,
    GetLogInfo,
    GetStatus,
    ItemsDurable,
    ListArtifacts,
    ListBatches,
    ListPools,
    ListTasks,
    LogInfo,
    OpenBatch,
    PoolDrained,
    PoolList,
    PushArtifact,
    PutTask,
    Request,
    Results,
    ShowArtifact,
    ShowBatch,
    ShowTask,
    SubmitBatch,
    TaskInfo,
    TaskList,
    WaitBatch,
    WarmPool,
)

REPLY_TYPES: Final[dict[type[Request], type[msgspec.Struct]]] = {
    PutTask: TaskInfo,
    ListTasks: TaskList,
    ShowTask: TaskInfo,
    PushArtifact: ArtifactInfo,
    ListArtifacts: ArtifactList,
    ShowArtifact: ArtifactInfo,
    ActivateArtifact: ArtifactInfo,
    OpenBatch: BatchOpened,
    AddItems: ItemsDurable,
    CloseBatch: BatchAccepted,
    SubmitBatch: BatchAccepted,
    Exec: ExecResult,
    ListBatches: BatchList,
    ShowBatch: BatchSummary,
    Results: BatchSummary,
    WaitBatch: BatchSummary,
    CancelBatch: CancelRequested,
    ListPools: PoolList,
    WarmPool: PoolStatistics,
    DrainPool: PoolDrained,
    GetStatus: DaemonStatus,
    GetLogInfo: LogInfo,
}
