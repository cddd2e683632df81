"""What the service manager is told, as sd_notify(3) describes it. Without $NOTIFY_SOCKET nothing is sent."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Final

import trio

from loopaid.errors import ConfigError

log = logging.getLogger(__name__)

PATIENCE_S: Final = 5.0
"""How long a manager that takes nothing may hold us up; it will notice by itself what it has missed."""
BEATS_PER_TIMEOUT: Final = 2
"""The manager's advice: say WATCHDOG=1 in half of the time after which it would act."""


class Notifier:
    """Made by `take_notifier`. `beat_s` is how often the watchdog wants to hear from us, None for never."""

    def __init__(self, address: str | None = None, beat_s: float | None = None) -> None:
        self._address = address
        self._beat_s = beat_s

    def __repr__(self) -> str:
        return f"<Notifier {self._address!r} beat_s={self._beat_s}>"

    async def tell(self, **assignments: object) -> None:
        """Send assignments such as READY=1 in one message. A manager that cannot be told is no reason to fail."""
        if self._address is None:
            return
        message = "\n".join(f"{name}={' '.join(str(value).split())}" for name, value in assignments.items())
        try:
            with trio.fail_after(PATIENCE_S), trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as sock:
                await sock.connect(self._address)
                await sock.send(message.encode())
        except (OSError, trio.TooSlowError) as error:
            log.warning(
                "the service manager was not told %(what)s: %(reason)s",
                {
                    "event": "manager_not_told",
                    "what": ", ".join(assignments),
                    "reason": str(error) or "it takes nothing",
                },
            )

    async def keep_watchdog(self, beat: Callable[[], Awaitable[None]]) -> None:
        """Say WATCHDOG=1 again and again, each time after `beat` returned; what hangs in there gets us restarted."""
        if self._beat_s is None:
            return
        while True:
            await beat()
            await self.tell(WATCHDOG=1)
            await trio.sleep(self._beat_s)


def take_notifier(environ: MutableMapping[str, str], pid: int) -> Notifier:
    """Read what the manager put into the environment, and remove it: our children are none of its business.

    Raises ConfigError for an address that is not a Unix socket's, or a watchdog's time that is no number.
    """
    address = environ.pop("NOTIFY_SOCKET", "")
    watchdog_usec, watchdog_pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if not address:
        return Notifier()
    if not address.startswith(("/", "@")):
        raise ConfigError(f"$NOTIFY_SOCKET is neither a path nor an abstract name: {address}; unset it")
    if watchdog_pid not in ("", str(pid)):
        watchdog_usec = ""
    if watchdog_usec and not (watchdog_usec.isdecimal() and int(watchdog_usec)):
        raise ConfigError(f"$WATCHDOG_USEC is not a number of microseconds: {watchdog_usec}; unset it")
    beat_s = int(watchdog_usec) / 1e6 / BEATS_PER_TIMEOUT if watchdog_usec else None
    return Notifier("\0" + address[1:] if address[0] == "@" else address, beat_s)
