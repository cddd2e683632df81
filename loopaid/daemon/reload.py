"""SIGHUP: what a daemon that runs takes over of a configuration that was changed, and what waits for the next start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from loopaid.config import Config, changes, with_values
from loopaid.daemon.app import Daemon, retention_limits, scheduler_limits
from loopaid.daemon.logging import set_up_logging
from loopaid.errors import ConfigError

log = logging.getLogger(__name__)

RELOADED: Final = frozenset(
    {
        "daemon.log_level",
        "daemon.log_format",
        "daemon.drain_timeout_s",
        "log.retention_bytes",
        "log.retention_days",
        "execution.provider",
        "execution.isolation",
        "execution.timeout_ms",
        "batch.max_concurrency",
        "batch.items_max",
        "batch.queued_max",
        "batch.queued_per_uid_max",
        "batch.bytes_per_uid_max",
        "pool.sessions_max",
        "pool.idle_timeout_s",
        "pool.lifetime_max_s",
        "pool.executions_max",
        "pool.slice_ms",
        "pool.lease_wait_ms",
        *(f"pool.{language}.{key}" for language in Config().pool.languages() for key in ("size_max", "warm_min")),
        "limits.input_bytes_max",
        "limits.output_bytes_max",
        "limits.stdout_bytes_max",
        "limits.stderr_bytes_max",
        "limits.source_bytes_max",
    }
)
"""etc/loopaid.toml says the same to the person who sets them."""


def reload(daemon: Daemon, read: Callable[[], Config]) -> str:
    """Read the configuration again and work by it; answers in a few words what came of it.

    A configuration that cannot be used changes nothing.
    """
    try:
        changed = changes(daemon.config, read())
    except ConfigError as error:
        log.error("the configuration stays as it was: %(reason)s", {"event": "not_reloaded", "reason": error})
        return f"not reloaded: {error}"
    taken = {key: value for key, (_, value) in changed.items() if key in RELOADED}
    _apply(daemon, with_values(daemon.config, taken))
    if not taken.keys().isdisjoint(("daemon.log_level", "daemon.log_format")):
        set_up_logging(daemon.config.daemon.log_level, daemon.config.daemon.log_format)
    for key, (before, after) in changed.items():
        if key in RELOADED:
            log.info(
                "%(key)s is now %(after)r, it was %(before)r",
                {"event": "key_reloaded", "key": key, "after": after, "before": before},
            )
        else:
            log.warning(
                "%(key)s stays %(before)r: %(after)r takes a restart",
                {"event": "key_takes_restart", "key": key, "before": before, "after": after},
            )
    log.info(
        "the configuration was read again: %(taken)d of %(changed)d changed keys taken over",
        {"event": "config_reloaded", "taken": len(taken), "changed": len(changed)},
    )
    told = f"{len(taken)} keys reloaded"
    waiting = [key for key in changed if key not in RELOADED]
    return f"{told}; a restart is needed for {', '.join(waiting)}" if waiting else told


def _apply(daemon: Daemon, config: Config) -> None:
    daemon.config = config
    daemon.intake.config = config
    daemon.catalog.source_bytes_max = config.limits.source_bytes_max
    for provider in daemon.providers.values():
        provider.use_limits(config.limits)
    daemon.pools.resize(scheduler_limits(config))
    daemon.retention.use(retention_limits(config))
