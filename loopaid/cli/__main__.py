"""Where `loopai` begins: Ctrl-C is no crash, even before anything that takes time is imported."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the tool. Before its own code answers Ctrl-C, and again behind that, the process just ends, with 130."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is to be ignored
    if usual:
        signal.signal(signal.SIGINT, _leave)
    from loopaid.cli.main import run

    if usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    exit_code = run(sys.argv[1:])
    if usual:
        signal.signal(signal.SIGINT, _leave)
    sys.exit(exit_code)


def _leave(*_: object) -> NoReturn:
    os._exit(130)


if __name__ == "__main__":
    main()
