"""`loopai task ...` and `loopai artifact ...`: named purposes and the programs stored under them."""

from __future__ import annotations

import click

from loopaid.cli import names
from loopaid.cli import options as shared
from loopaid.cli.objects import artifact_object, task_object
from loopaid.cli.render import print_list, print_object
from loopaid.cli.settings import Settings, Verbs, pass_settings
from loopaid.model import Shape

_TASK_COLUMNS = "name active_version versions sampling_rate created_at"
_ARTIFACT_COLUMNS = "task version active language shape created_at"
_task = click.argument("task", metavar="TASK", shell_complete=names.tasks)


@click.group(cls=Verbs)
def task() -> None:
    """Named purposes that own programs."""


@task.command()
@click.argument("name")
@click.option("--sampling-rate", type=click.FloatRange(0, 1), help="Share of items marked for validation (0).")
@click.option("--replace", is_flag=True, help="Change the task if it exists already.")
@pass_settings
def create(settings: Settings, name: str, sampling_rate: float | None, replace: bool) -> None:
    """Create a task.

    \b
    Example:
      loopai task create email-category --sampling-rate 0.1
    """
    with settings.client() as client:
        put = client.put_task if replace else client.create_task
        created = put(name, sampling_rate=sampling_rate)
    print_object(settings, task_object(created), created.name)


@task.command("list")
@pass_settings
def list_tasks(settings: Settings) -> None:
    """List the tasks.

    \b
    Example:
      loopai task list --output table
    """
    with settings.client() as client:
        tasks = client.list_tasks()
    print_list(settings, [task_object(each) for each in tasks], _TASK_COLUMNS, "name")


@task.command("show")
@click.argument("name", shell_complete=names.tasks)
@pass_settings
def show_task(settings: Settings, name: str) -> None:
    """Show a task.

    \b
    Example:
      loopai task show email-category
    """
    with settings.client() as client:
        shown = client.show_task(name)
    print_object(settings, task_object(shown), shown.name)


@click.group(cls=Verbs)
def artifact() -> None:
    """The versions of a task's program."""


@artifact.command()
@_task
@click.argument("file", type=shared.FILE)
@click.option("--language", type=shared.LANGUAGES, help="The program's language, if its suffix does not tell.")
@click.option(
    "--shape",
    type=shared.SHAPES,
    help="Defines main, or assigns result; detected if not given.",
)
@click.option("--no-activate", is_flag=True, help="Only store it: the active version stays.")
@pass_settings
def push(settings: Settings, task: str, file: str, language: str | None, shape: str | None, no_activate: bool) -> None:
    """Store a file as the task's next version.

    \b
    Example:
      loopai artifact push email-category classify.py
    """
    source = shared.read_program(file)
    with settings.client() as client:
        pushed = client.push_artifact(
            task,
            source,
            language=shared.language_of(file, language),
            shape=Shape(shape) if shape else None,
            activate=not no_activate,
        )
    print_object(settings, artifact_object(pushed), f"{pushed.task}@{pushed.version}")


@artifact.command("list")
@_task
@pass_settings
def list_artifacts(settings: Settings, task: str) -> None:
    """List the versions of a task's program.

    \b
    Example:
      loopai artifact list email-category
    """
    with settings.client() as client:
        artifacts = client.list_artifacts(task)
    print_list(settings, [artifact_object(each) for each in artifacts], _ARTIFACT_COLUMNS, "version")


@artifact.command("show")
@click.argument("task", metavar="TASK[@N]", shell_complete=names.tasks)
@pass_settings
def show_artifact(settings: Settings, task: str) -> None:
    """Show a version, the active one if N is left out, with its source.

    \b
    Example:
      loopai artifact show email-category@2
    """
    name, version = shared.parse_task(task)
    with settings.client() as client:
        shown = client.show_artifact(name, version)
    print_object(settings, artifact_object(shown), f"{shown.task}@{shown.version}")


@artifact.command()
@click.argument("task", metavar="TASK@N", shell_complete=names.tasks)
@pass_settings
def activate(settings: Settings, task: str) -> None:
    """Make a version the one that batches run.

    \b
    Example:
      loopai artifact activate email-category@2
    """
    name, version = shared.parse_task(task)
    if version is None:
        raise click.UsageError(f"say which version: {name}@N")
    with settings.client() as client:
        activated = client.activate_artifact(name, version)
    print_object(settings, artifact_object(activated), f"{activated.task}@{activated.version}")
