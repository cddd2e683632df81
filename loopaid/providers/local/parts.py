"""What the sessions of this machine are made of: found, and tried out once, before the first of them starts."""

from __future__ import annotations

import os

import msgspec

from loopaid.config import Config
from loopaid.errors import ErrorCode, ErrorInfo
from loopaid.model import Language
from loopaid.providers.local.languages import Runtime, find_runtimes
from loopaid.providers.local.probe import ProbeReport, report_missing, report_untried, run_probe
from loopaid.providers.local.sandbox import SandboxSpec, host_identity
from loopaid.providers.local.seccomp import deny_program
from loopaid.providers.local.toolchains import BwrapUnusable, find_bwrap, system_mounts


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """`report` is what came of trying the sandbox, `spec` what all sessions have of it.

    Every language stands in `runtimes`, or in `missing` with the reason and the fix.
    """

    spec: SandboxSpec
    report: ProbeReport
    runtimes: dict[Language, Runtime]
    missing: dict[Language, ErrorInfo]

    @property
    def seccomp(self) -> bytes:
        """The system call filter of whatever runs in the sandbox."""
        return deny_program() if self.spec.kind == "bubblewrap" and self.report.ok else b""

    def problem(self, language: Language) -> ErrorInfo | None:
        """Why no session can run a language here, with the fix; None when it can."""
        if self.report.ok or language in self.missing:
            return self.missing.get(language)
        message = f"{self.report.reason}: {self.report.detail}; {self.report.fix}"
        return ErrorInfo(code=ErrorCode.SANDBOX_UNAVAILABLE, message=message)


def find_parts(config: Config) -> Parts:
    """Find bubblewrap and the languages, and try the sandbox. Blocks for some 100 ms. Raises nothing.

    When the Python of the configuration is of no use, the sandbox is tried with the usual one: whether programs can be
    confined here is another question.
    """
    confined = config.sandbox.kind == "bubblewrap"
    run_as = host_identity(os.geteuid()) if confined else None
    runtimes, missing = find_runtimes(config, run_as)
    if not confined:
        return Parts(spec=SandboxSpec(kind="none"), report=ProbeReport(ok=True), runtimes=runtimes, missing=missing)
    try:
        bwrap = find_bwrap(config.sandbox.bwrap)
    except BwrapUnusable as error:
        return Parts(spec=SandboxSpec(), report=report_missing(error), runtimes=runtimes, missing=missing)
    read_only, symlinks = system_mounts()
    spec = SandboxSpec(
        bwrap=bwrap, read_only=read_only, symlinks=symlinks, tmp_bytes=config.sandbox.tmp_bytes, run_as=run_as
    )
    report = _try(spec, runtimes.get(Language.PYTHON), run_as)
    return Parts(spec=spec, report=report, runtimes=runtimes, missing=missing)


def _try(spec: SandboxSpec, python: Runtime | None, run_as: int | None) -> ProbeReport:
    """What the probe says, which is a program in Python. Without one nothing is known, and nothing may run."""
    if python is None:
        usual, missing = find_runtimes(Config(), run_as, [Language.PYTHON])
        if missing:
            return report_untried()
        python = usual[Language.PYTHON]
    return run_probe(msgspec.structs.replace(spec, read_only=spec.read_only + python.read_only), python)
