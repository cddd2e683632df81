"""What the programs of a compiled language are built with. Pure: builds.py runs it, build_cache.py keeps the results.

A build runs `command` in a sandbox of its own, in which these variables name directories:

    BUILD      the files of `template`, and beside them those of `sources` or, for the harness alone, of `harness`
    PREPARED   what `prepare` wrote as a tar, for the template alone: parts that all builds need. Read-only
    TMPDIR     empty, and gone with the build

What `command` writes to stdout is what was built, and what it writes to stderr is for `explain`. A session begins as
the harness alone (`Runtime.command`, followed by the path of the harness), and finds beside it what the commands in
`beside` write. What was built of a program it finds, when
LOAD has come, behind the descriptor that its setting `program` names. At isolation `item` it is told to STAND_BACK, and
its place is taken by a parent that starts it anew for each item; or, if what is built `runs_alone`, that, which must
then do as a harness does that has its program already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import msgspec

from loopaid.model import ProgramError, Shape


class Compiler(msgspec.Struct, frozen=True, kw_only=True):
    """How one language is compiled. Whatever changes here makes everything be built anew.

    `version` is that of the toolchain, `read_only` what it needs beside /usr, as (outside, inside). Files are given by
    their paths below BUILD. `sources` makes them of a program's shape and text, and may raise LoadFailed. `explain`
    makes the program's error of what a failed build said, with the lines of the text that was given to `sources`.
    The keys of `beside` are what a name has in addition to that of the harness.
    """

    version: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    template: Mapping[str, bytes]
    harness: Mapping[str, bytes]
    sources: Callable[[Shape, str], Mapping[str, bytes]]
    explain: Callable[[str], ProgramError]
    prepare: tuple[str, ...] = ()
    beside: Mapping[str, tuple[str, ...]] = {}
    runs_alone: bool = False
    read_only: tuple[tuple[str, str], ...] = ()

    def key(self, command: tuple[str, ...], files: Mapping[str, bytes]) -> str:
        """What stands for the result of a command on these files."""
        said = (self.version, command, sorted(self.environment.items()), sorted({**self.template, **files}.items()))
        return hashlib.sha256(msgspec.msgpack.encode(said)).hexdigest()
