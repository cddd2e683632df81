"""The options that `run` and `batch submit` share, and the arguments that several verbs take."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from loopaid.cli.items import FORMATS
from loopaid.cli.render import print_object
from loopaid.cli.results import PART_SUFFIX
from loopaid.cli.settings import Settings
from loopaid.cli.views import plan_view
from loopaid.errors import ErrorCode, LoopaidError
from loopaid.model import MAX_CONCURRENCY, PRIORITY_MAX, BatchOptions, Isolation, Language, Shape
from loopaid.wire.messages import BatchPlan

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULTS: Final = BatchOptions()
_LANGUAGE_OF_SUFFIX: Final = {
    ".py": Language.PYTHON,
    ".js": Language.JAVASCRIPT,
    ".mjs": Language.JAVASCRIPT,
    ".cjs": Language.JAVASCRIPT,
    ".ts": Language.JAVASCRIPT,
    ".go": Language.GO,
    ".cs": Language.CSHARP,
}

FILE: Final = click.Path(exists=True, dir_okay=False, readable=True)
ITEM_FILE: Final = click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True)
LANGUAGES: Final = click.Choice([language.value for language in Language])
ISOLATIONS: Final = click.Choice([isolation.value for isolation in Isolation])
SHAPES: Final = click.Choice([shape.value for shape in Shape])

_EXECUTION: Final = (
    click.option("--timeout-ms", type=int, help=f"The program's own time per item ({_DEFAULTS.timeout_ms})."),
    click.option(
        "--isolation",
        type=ISOLATIONS,
        help="What two items may share (session).",
    ),
    click.option(
        "--provider",
        type=click.Choice(("local", "codebeaker", "standard")),
        help="Where sessions come from (local).",
    ),
    click.option("--priority", type=int, help=f"0 to {PRIORITY_MAX}, which is first ({_DEFAULTS.priority})."),
)
_BATCH: Final = (
    click.option(
        "--items", "items_path", type=ITEM_FILE, required=True, help="Item file; - is stdin, read to its end."
    ),
    click.option(
        "--items-format", type=click.Choice(FORMATS), default="auto", help="auto: csv by name, else JSON Lines."
    ),
    click.option(
        "--max-concurrency", type=int, help=f"Sessions at once, 1 to {MAX_CONCURRENCY} ({_DEFAULTS.max_concurrency})."
    ),
    *_EXECUTION,
    click.option("--stop-on-first-error", is_flag=True, default=None, help="Skip what has not begun after a failure."),
    click.option("--idempotency-key", metavar="KEY", help="The same key answers with the same batch."),
    click.option("--sampling-rate", type=click.FloatRange(0, 1), help="Instead of the task's, for this batch."),
    click.option(
        "--out",
        type=click.Path(dir_okay=False),
        help="Write the results to this file, once all are there.",
    ),
    click.option("--as-completed", is_flag=True, help="Results in the order they complete, not of submission."),
    click.option("--dry-run", is_flag=True, help="Check items and options, say what would run, and run nothing."),
)


def _apply(options: tuple[Callable[[F], F], ...]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


execution_options = _apply(_EXECUTION)
batch_options = _apply(_BATCH)


def checked_options(**given: Any) -> dict[str, Any]:
    """The batch options that were given, checked before anything is read or sent."""
    options = {name: value for name, value in given.items() if value is not None}
    BatchOptions(**options).check()
    return options


def parse_task(reference: str) -> tuple[str, int | None]:
    """Split `TASK[@N]`."""
    task, at, version = reference.rpartition("@")
    if not at:
        return reference, None
    if not task or not version.isdecimal():
        raise click.BadParameter(f"{reference!r} is not TASK or TASK@VERSION")
    return task, int(version)


def read_program(path: str) -> str:
    try:
        return Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise LoopaidError(
            ErrorCode.INVALID_REQUEST, f"{path} is not UTF-8 at byte {error.start + 1}", path=path
        ) from None


def language_of(path: str, chosen: str | None) -> Language:
    """The chosen language, else that of the file's suffix, else Python."""
    return Language(chosen) if chosen else _LANGUAGE_OF_SUFFIX.get(Path(path).suffix, Language.PYTHON)


def print_plan(settings: Settings, plan: BatchPlan) -> None:
    """What a dry run found out."""
    described = {"dry_run": True, **msgspec.to_builtins(plan)}
    described["options"] = msgspec.structs.asdict(plan.options)
    print_object(settings, described, f"{plan.task}@{plan.version}", plan_view(plan))


def refuse_overwriting(out: str | None, *inputs: str) -> None:
    """Results must not replace the file they are made from."""
    written = [out, os.path.realpath(out) + PART_SUFFIX] if out else []
    for path, place in itertools.product(inputs, written):
        if path != "-" and os.path.exists(place) and os.path.samefile(place, path):
            raise click.BadParameter(f"{out} is read by this command too", param_hint="--out")
