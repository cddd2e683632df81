"""A CodeBeaker server for tests: a real WebSocket server with the real one's behaviour and mistakes.

    async with open_codebeaker_double() as double:
        double.faults.plan(Fault(FaultKind.DROP))
        ... connect to double.url ...

It shares no code with the client that it is there to try. Programs run unconfined: it is no sandbox.
"""

from loopaid.testing.codebeaker_double.faults import Fault, FaultKind, Faults
from loopaid.testing.codebeaker_double.server import CodeBeakerDouble, open_codebeaker_double
from loopaid.testing.codebeaker_double.sessions import SessionManager

__all__ = ["CodeBeakerDouble", "Fault", "FaultKind", "Faults", "SessionManager", "open_codebeaker_double"]
