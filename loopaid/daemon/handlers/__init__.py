"""What the daemon answers: one handler per request, named like it. This table is the list of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from loopaid.daemon.handlers import batches, catalog, drain, pools, record_stats, records, results, status
from loopaid.wire import messages as m

if TYPE_CHECKING:
    from loopaid.daemon.app import Daemon
    from loopaid.daemon.connection import Call
    from loopaid.daemon.server import Listener


def dispatch(daemon: Daemon, listener: Listener, call: Call, request: m.AnyRequest) -> object:
    """Answer a request, or return an awaitable that does. What has to happen in the order of arrival (items) happens
    in this call. Both raise LoopaidError."""
    match request:
        case m.PutTask():
            return catalog.put_task(daemon, call, request)
        case m.ListTasks():
            return catalog.list_tasks(daemon, call, request)
        case m.ShowTask():
            return catalog.show_task(daemon, call, request)
        case m.PushArtifact():
            return catalog.push_artifact(daemon, call, request)
        case m.ListArtifacts():
            return catalog.list_artifacts(daemon, call, request)
        case m.ShowArtifact():
            return catalog.show_artifact(daemon, call, request)
        case m.ActivateArtifact():
            return catalog.activate_artifact(daemon, call, request)
        case m.OpenBatch():
            return batches.open_batch(daemon, call, request)
        case m.AddItems():
            return batches.add_items(daemon, call, request)
        case m.CloseBatch():
            return batches.close_batch(daemon, call, request)
        case m.SubmitBatch():
            return batches.submit_batch(daemon, call, request)
        case m.CheckBatch():
            return batches.check_batch(daemon, call, request)
        case m.Exec():
            return batches.exec_item(daemon, call, request)
        case m.ListBatches():
            return batches.list_batches(daemon, call, request)
        case m.ShowBatch():
            return batches.show_batch(daemon, call, request)
        case m.WaitBatch():
            return batches.wait_batch(daemon, call, request)
        case m.CancelBatch():
            return batches.cancel_batch(daemon, call, request)
        case m.Results():
            return results.stream_results(daemon, call, request)
        case m.ListPools():
            return pools.list_pools(daemon)
        case m.WarmPool():
            return pools.warm_pool(daemon, call, request)
        case m.DrainPool():
            return pools.drain_pool(daemon, call, request)
        case m.RetryBatch():
            return batches.retry_batch(daemon, call, request)
        case m.ListRecords():
            return records.list_records(daemon, call, request)
        case m.GetRecordStats():
            return record_stats.count_records(daemon, call, request)
        case m.GetStatus():
            return status.get_status(daemon, listener, call)
        case m.GetMetrics():
            return status.get_metrics(daemon, listener)
        case m.GetLogInfo():
            return status.get_log_info(daemon, call)
        case m.PruneLog():
            return status.prune_log(daemon, call, request)
        case m.DrainDaemon():
            return drain.drain_daemon(daemon, call, request)
        case _:
            assert_never(request)
