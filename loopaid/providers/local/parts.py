"""What the sessions of this machine are made of: found, and tried out once, before the first of them starts."""

from __future__ import annotations

import os

import msgspec

from loopaid.config import Config
from loopaid.errors import ErrorCode, ErrorInfo, LoopaidError
from loopaid.providers.local.probe import ProbeReport, report_missing, run_probe
from loopaid.providers.local.sandbox import SandboxSpec, host_identity
from loopaid.providers.local.toolchains import BwrapUnusable, PythonToolchain, find_bwrap, find_python, system_mounts


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """`report` is what came of trying the sandbox; `python_problem` says why there is no `python`."""

    spec: SandboxSpec
    report: ProbeReport
    python: PythonToolchain | None
    python_problem: ErrorInfo | None = None

    @property
    def problem(self) -> ErrorInfo | None:
        """Why no session can run Python here, with the fix; None when it can."""
        if self.report.ok:
            return self.python_problem
        message = f"{self.report.reason}: {self.report.detail}; {self.report.fix}"
        return ErrorInfo(code=ErrorCode.SANDBOX_UNAVAILABLE, message=message)


def find_parts(config: Config) -> Parts:
    """Find bubblewrap and the interpreter, and try the sandbox. Blocks for some 100 ms. Raises nothing.

    When the interpreter of the configuration is of no use, the sandbox is tried with the usual one: whether programs
    can be confined here is another question.
    """
    confined = config.sandbox.kind == "bubblewrap"
    run_as = host_identity(os.geteuid()) if confined else None
    python, problem = _python(config, run_as)
    if not confined:
        spec = SandboxSpec(kind="none")
        return Parts(spec=spec, report=ProbeReport(ok=True), python=python, python_problem=problem)
    try:
        bwrap = find_bwrap(config.sandbox.bwrap)
    except BwrapUnusable as error:
        return Parts(spec=SandboxSpec(), report=report_missing(error), python=python, python_problem=problem)
    read_only, symlinks = system_mounts()
    spec = SandboxSpec(
        bwrap=bwrap, read_only=read_only, symlinks=symlinks, tmp_bytes=config.sandbox.tmp_bytes, run_as=run_as
    )
    tried_with = python or _python(Config(), run_as)[0]
    if tried_with is None:
        return Parts(spec=spec, report=ProbeReport(ok=True), python=None, python_problem=problem)
    spec = msgspec.structs.replace(spec, read_only=read_only + tried_with.read_only)
    return Parts(spec=spec, report=run_probe(spec, tried_with), python=python, python_problem=problem)


def _python(config: Config, run_as: int | None) -> tuple[PythonToolchain | None, ErrorInfo | None]:
    section = config.pool.python
    try:
        return find_python(section.interpreter, section.environment, run_as=run_as), None
    except LoopaidError as error:
        return None, error.info()
