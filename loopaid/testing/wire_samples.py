"""What stands on the wire, kept for ever: sample frames of generation 1, each beside the value that it means.

    python -m loopaid.testing.wire_samples

adds what a changed or new message needs to `tests/data/wire/`, and changes nothing that is there: peers of every
version that spoke this generation are out there. `generation-1.jsonl` has one sample per line: its name, who sends it,
the frame in hex, and its value with every field spelled out, those that were left out as well. `words-1.json` has the
words of the closed sets, in their order.
"""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from loopaid.client.results import results_in
from loopaid.errors import ErrorCode
from loopaid.model import BatchState, Isolation, ItemStatus, Language, Shape
from loopaid.testing.reply_types import REPLY_TYPES
from loopaid.testing.wire_examples import CLIENT, CREDIT, DAEMON, REQUEST_TYPES, frames, stream_start
from loopaid.wire.connection import ClientConnection, ServerConnection
from loopaid.wire.events import (
    BadRequest,
    CancelReceived,
    CreditReceived,
    EndReceived,
    ErrorReceived,
    EventReceived,
    HelloReceived,
    ReplyReceived,
    RequestReceived,
)
from loopaid.wire.frames import Frame, FrameKind, FrameReader
from loopaid.wire.messages import GetStatus, Request, StreamStart, decode_reply, decode_result_block

DIRECTORY: Final = Path(__file__).parents[2] / "tests" / "data" / "wire"
SAMPLES: Final = DIRECTORY / "generation-1.jsonl"
WORDS: Final = DIRECTORY / "words-1.json"
COMMAND: Final = "python -m loopaid.testing.wire_samples"
CLOSED_SETS: Final[tuple[type[enum.StrEnum], ...]] = (ItemStatus, BatchState, Language, Shape, Isolation, ErrorCode)


class Sample(msgspec.Struct, frozen=True):
    """`name` is the kind of the frame, what it is about, and what is special about it. `frame` is in hex."""

    name: str
    sender: str
    frame: str
    value: Any

    @property
    def data(self) -> bytes:
        return bytes.fromhex(self.frame)

    def parts(self) -> Frame:
        (frame,) = FrameReader().feed(self.data)
        return frame


def load() -> list[Sample]:
    return msgspec.json.Decoder(Sample).decode_lines(SAMPLES.read_bytes()) if SAMPLES.exists() else []


def load_words() -> dict[str, list[str]]:
    return msgspec.json.decode(WORDS.read_bytes(), type=dict[str, list[str]]) if WORDS.exists() else {}


def missing() -> list[Sample]:
    """What is said today and is not what the newest sample of that name says."""
    newest = {sample.name: sample.frame for sample in load()}
    new = [Sample(said.name, said.sender, said.frame.hex(), None) for said in frames()]
    return [
        msgspec.structs.replace(sample, value=meaning(sample))
        for sample in new
        if newest.get(sample.name) != sample.frame
    ]


def missing_words() -> dict[str, list[str]]:
    known = load_words()
    new = {
        kind.__name__: [word.value for word in kind if word not in known.get(kind.__name__, ())] for kind in CLOSED_SETS
    }
    return {name: words for name, words in new.items() if words}


def meaning(sample: Sample) -> Any:
    """What the peer makes of it, by the way that the daemon and the clients take, as JSON has it."""
    client, server = ClientConnection(CLIENT), ServerConnection(DAEMON)
    kind = sample.parts().kind
    if kind is not FrameKind.HELLO:
        server.receive_data(client.hello())
        client.receive_data(server.hello())
        if kind is not FrameKind.REQUEST:
            request_id, data = client.request(GetStatus())
            server.receive_data(data)
            client.credit(request_id, CREDIT)
    (event,) = (server if sample.sender == "client" else client).receive_data(sample.data)
    match event:
        case HelloReceived(hello):
            return plain(hello)
        case RequestReceived(_, request):
            return {"type": request.__struct_config__.tag} | plain(request)
        case BadRequest(_, info) | ErrorReceived(_, info):
            return plain(info)
        case CancelReceived():
            return None
        case CreditReceived(_, nbytes):
            return nbytes
        case EventReceived(_, body, True):
            message = decode_result_block(body)
            results = [result.as_dict() for part in results_in(stream_start(), message) for result in part]
            return {"message": plain(message), "results": results}
        case EventReceived(_, body, _):
            return plain(decode_reply(body, StreamStart))
        case ReplyReceived(_, body) | EndReceived(_, body):
            return plain(decode_reply(body, REPLY_TYPES[request_type(sample)]))


def request_type(sample: Sample) -> type[Request]:
    """Of a request, or of what answers one."""
    tag = sample.name.split()[1].rstrip(",")
    (found,) = [kind for kind in REQUEST_TYPES if kind.__struct_config__.tag == tag]
    return found


def plain(value: object) -> Any:
    """A value as JSON has it, with every field by its name and bytes, which hold JSON, as text."""
    match value:
        case msgspec.Struct():
            return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        case enum.Enum():
            return value.value
        case bytes():
            return value.decode()
        case list() | tuple():
            return [plain(each) for each in value]
        case dict():
            return {str(key): plain(each) for key, each in value.items()}
        case _:
            return value


def told(value: Any, expected: Any) -> Any:
    """`value` without the fields that `expected` does not know: those that a type has gained since."""
    if isinstance(value, dict) and isinstance(expected, dict):
        return {key: told(value[key], expected[key]) for key in expected if key in value}
    if isinstance(value, list) and isinstance(expected, list) and len(value) == len(expected):
        return [told(*pair) for pair in zip(value, expected, strict=True)]
    return value


def main() -> None:
    """Add what is missing, and say what that is."""
    new, new_words = missing(), missing_words()
    with SAMPLES.open("ab") as file:
        file.writelines(msgspec.json.encode(sample) + b"\n" for sample in new)
    known = load_words()
    words = known | {name: known.get(name, []) + more for name, more in new_words.items()}
    WORDS.write_bytes(msgspec.json.format(msgspec.json.encode(words)) + b"\n")
    for sample in new:
        sys.stdout.write(f"added {sample.name}\n")
    for name, more in new_words.items():
        sys.stdout.write(f"added to {name}: {', '.join(more)}\n")


if __name__ == "__main__":
    main()
