"""JavaScript on a CodeBeaker server: the contract, and what becomes of items that break, on every runtime.

On Docker it is run as on NodeJs, and tried where commands differ."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from loopaid.config import load_config
from loopaid.model import Isolation, Language, Shape
from loopaid.providers.base import LoadFailed, Program, SessionEnded
from loopaid.providers.codebeaker.provider import CodeBeakerProvider, open_codebeaker_provider
from loopaid.providers.codebeaker.session import CodeBeakerSession
from loopaid.testing.codebeaker_double import CodeBeakerDouble, open_codebeaker_double
from loopaid.testing.window_runs import error_of, run_window, statuses
from loopaid.wire.rows import decode_extra

pytestmark = pytest.mark.slow

PATIENCE_S = 60
RETURN = "function main(input) {\n  return input;\n}\n"


EVERYWHERE = pytest.mark.parametrize("runtime", ["NodeJs", "Docker", "Deno", "Bun"])
ON_NODE = pytest.mark.parametrize("runtime", ["NodeJs"])
IN_WORKERS = pytest.mark.parametrize("runtime", ["Deno", "Bun"])


@pytest.fixture(params=["NodeJs", "Deno", "Bun"])
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def double() -> AsyncIterator[CodeBeakerDouble]:
    with trio.fail_after(PATIENCE_S):
        async with open_codebeaker_double() as double:
            yield double


@pytest.fixture
async def provider(double: CodeBeakerDouble, runtime: str) -> AsyncIterator[CodeBeakerProvider]:
    environ = {
        "LOOPAID_CODEBEAKER__URL": double.url,
        "LOOPAID_CODEBEAKER__LANGUAGE_MAPPING__JAVASCRIPT": "JavaScript",
        "LOOPAID_CODEBEAKER__MEMORY_MB": "192",
        "LOOPAID_CODEBEAKER__RUNTIME_MAPPING__JAVASCRIPT": runtime,
        "LOOPAID_LIMITS__OUTPUT_BYTES_MAX": str(8 << 20),
    }
    config = load_config(None, environ, system_file=Path("/no/such/file")).config
    async with open_codebeaker_provider(config, environ={}) as provider:
        yield provider


async def session_of(provider: CodeBeakerProvider, source: str = RETURN, *, load_s: float = 5.0) -> CodeBeakerSession:
    session = await provider.start(Language.JAVASCRIPT, "s-1")
    shape = Shape.FUNCTION if "function main" in source else Shape.SCRIPT
    await session.load(Program(0, "d" * 64, Language.JAVASCRIPT, shape, source, Isolation.SESSION), timeout_s=load_s)
    return session


ran = partial(run_window, timeout_ms=2000)


@EVERYWHERE
async def test_a_window_is_one_command_and_every_item_of_javascript_has_its_row(
    provider: CodeBeakerProvider, double: CodeBeakerDouble, runtime: str
) -> None:
    session = await session_of(provider)
    assert {(each.config.language, each.runtime) for each in double.sessions.sessions} == {("JavaScript", runtime)}
    before = double.requests["session.execute"]
    values = [None, 0, "é\u2028\U0001f600", {"a": [1.5, True]}, "x" * 5000]
    rows, end = await ran(session, values)
    assert (statuses(rows), [json.loads(row.output) for row in rows]) == (["ok"] * 5, values)
    assert (end.done, session.sandbox) == (5, f"codebeaker:{runtime}")
    assert double.requests["session.execute"] - before == 1
    assert session.version.split(".")[0].isdecimal()


async def test_modules_and_functions_that_are_awaited_run(provider: CodeBeakerProvider) -> None:
    source = (
        "import { createHash } from 'node:crypto';\n"
        "export async function main(n) {\n  return createHash('sha256').update(`${await n}`).digest('hex').length;\n}\n"
    )
    session = await session_of(provider, source)
    rows, _ = await ran(session, [1])
    assert [row.output for row in rows] == [b"64"]
    session = await session_of(provider, "result = await Promise.resolve(input_data + 1);\n")
    rows, _ = await ran(session, [1, 2])
    assert [row.output for row in rows] == [b"2", b"3"]


@IN_WORKERS
async def test_types_are_left_out(provider: CodeBeakerProvider) -> None:
    source = "interface Item { n: number }\n\nfunction main(item: Item): number {\n  return item.n;\n}\n"
    rows, _ = await ran(await session_of(provider, source), [{"n": 3}])
    assert [row.output for row in rows] == [b"3"]


async def test_a_script_knows_its_item_and_what_it_prints_is_kept(provider: CodeBeakerProvider) -> None:
    session = await session_of(provider, "console.log('said', input_data);\nresult = loopaidItem.id;\n")
    rows, _ = await ran(session, [7, 8])
    assert [json.loads(row.output) for row in rows] == ["0", "1"]
    assert decode_extra(rows[1].extra or b"").stdout == "said 8\n"


async def test_an_endless_item_is_ended_alone_and_the_rest_was_not_begun(provider: CodeBeakerProvider) -> None:
    session = await session_of(provider, "function main(n) {\n  while (n);\n  return n;\n}\n")
    rows, end = await ran(session, [0, 1, 0], timeout_ms=200)
    assert (statuses(rows), end.done) == (["ok", "timeout"], 2)
    assert statuses((await ran(session, [0], timeout_ms=200))[0]) == ["ok"]


@ON_NODE
async def test_what_ends_the_process_is_the_items_own_doing(provider: CodeBeakerProvider) -> None:
    source = (
        "function main(n) {\n  require('fs').writeSync(1, 'last words\\n');\n  if (n) process.reallyExit(n);\n"
        "  return n;\n}\n"
    )
    session = await session_of(provider, source)
    rows, end = await ran(session, [0, 3, 0])
    assert (statuses(rows), end.done) == (["ok", "program_error"], 2)
    assert error_of(rows[1]) == ("ProcessEnded", "the program's process ended: exit code 3")
    assert decode_extra(rows[1].extra or b"").stdout == "last words\n"


@IN_WORKERS
async def test_an_exit_is_the_items_own_error_and_what_an_endless_one_printed_is_kept(
    provider: CodeBeakerProvider,
) -> None:
    source = (
        "function main(n) {\n  console.log('in', n);\n  if (n === 1) process.exit(3);\n  while (n);\n  return n;\n}\n"
    )
    session = await session_of(provider, source)
    rows, end = await ran(session, [0, 1, 2, 0], timeout_ms=500)
    assert (statuses(rows), end.done) == (["ok", "program_error", "timeout"], 3)
    assert error_of(rows[1]) == ("Exit", "the program called process.exit(3)")
    assert [decode_extra(row.extra or b"").stdout for row in rows] == ["in 0\n", "in 1\n", "in 2\n"]


@IN_WORKERS
async def test_errors_that_nobody_waits_for_are_the_items(provider: CodeBeakerProvider) -> None:
    source = (
        "function main(n) {\n  if (n) setTimeout(() => { throw new RangeError('late'); }, 1);\n"
        "  else Promise.reject(new TypeError('lost'));\n  return new Promise(() => {});\n}\n"
    )
    rows, _ = await ran(await session_of(provider, source), [0, 1])
    assert [error_of(row) for row in rows] == [("TypeError", "lost"), ("RangeError", "late")]


async def test_behind_the_first_error_nothing_of_the_window_is_run(provider: CodeBeakerProvider) -> None:
    session = await session_of(
        provider, "function main(n) {\n  if (!n) throw new RangeError('none');\n  return n;\n}\n"
    )
    rows, end = await ran(session, [1, 0, 1], stop=True)
    assert (statuses(rows), end.done) == (["ok", "program_error"], 2)
    assert error_of(rows[1]) == ("RangeError", "none")


async def test_a_window_of_long_items_ends_after_a_second(provider: CodeBeakerProvider) -> None:
    source = "async function main(ms) {\n  await new Promise((go) => setTimeout(go, ms));\n  return ms;\n}\n"
    session = await session_of(provider, source)
    rows, end = await ran(session, [600] * 8)
    assert statuses(rows) == ["ok"] * end.done
    assert end.done < 8


async def test_source_that_does_not_load_and_one_that_does_not_end(provider: CodeBeakerProvider) -> None:
    session = await session_of(provider, "function main( {")
    with pytest.raises(LoadFailed) as failure:
        await ran(session, [1])
    assert failure.value.error.type == "SyntaxError"
    session = await session_of(provider, "for (;;);\nfunction main() {}\n", load_s=0.2)
    with pytest.raises(LoadFailed, match=r"no answer within 0\.2 s"):
        await ran(session, [1])


@pytest.mark.parametrize(
    "eat",
    [
        "const kept = [];\n  for (;;) kept.push([n, n]);",
        "const kept = [];\n  for (;;) kept.push(Buffer.alloc(1 << 24, n));",
    ],
)
async def test_memory_is_bounded_there(provider: CodeBeakerProvider, eat: str) -> None:
    session = await session_of(provider, f"function main(n) {{\n  {eat}\n}}\n")
    rows, end = await ran(session, [1, 1], timeout_ms=50_000)
    assert statuses(rows)[:1] == ["memory_limit"]
    assert end.done == len(rows)


@pytest.mark.parametrize("runtime", ["Docker", "Deno", "Bun"])
async def test_megabytes_pass_both_ways(provider: CodeBeakerProvider) -> None:
    session = await session_of(provider)
    value = "".join(chr(0x4E00 + (number * 7919) % 20000) for number in range(900_000))
    rows, _ = await ran(session, [value, 1])
    assert [json.loads(row.output) for row in rows] == [value, 1]


@ON_NODE
@pytest.mark.parametrize("pipe", ["rows", "up"])
async def test_forged_rows_end_the_session_and_a_forged_end_counts_for_nothing(
    provider: CodeBeakerProvider, pipe: str
) -> None:
    """Elsewhere Node.js has descriptors of its own, and dies of what is written to them."""
    source = f"""
const fs = require('fs');

function main(data) {{
  for (const fd of fs.readdirSync('/proc/self/fd')) {{
    try {{
      if (fs.readlinkSync('/proc/self/fd/' + fd).includes('/{pipe}')) fs.writeSync(Number(fd), data);
    }} catch {{}}
  }}
  return 1;
}}
"""
    session = await session_of(provider, source)
    forged = "x" * 40 if pipe == "rows" else "\4\0\0\0\2{}"
    with pytest.raises(SessionEnded, match="protocol violation"):
        await ran(session, [forged, forged])


@ON_NODE
async def test_what_it_needed_of_tmp_is_gone_before_the_first_item(provider: CodeBeakerProvider) -> None:
    source = (
        "function main() {\n  const [, path] = process.argv;\n  return [path, require('fs').existsSync(path)];\n}\n"
    )
    session = await session_of(provider, source)
    (row,) = (await ran(session, [1]))[0]
    path, is_there = json.loads(row.output)
    assert Path(path).parent.name.startswith("loopaid-")
    assert not is_there
    assert not Path(path).parent.exists()
