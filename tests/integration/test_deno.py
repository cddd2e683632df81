"""Deno in the place of Node.js: the same harness, contract and statuses."""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loopaid.client import Client
from loopaid.config import Config
from loopaid.model import Isolation, Language

pytestmark = pytest.mark.slow  # Deno takes some 100 ms to start

Run = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def deno() -> Iterator[str]:
    """The one of the extra `test`, where sessions of a daemon of root can reach it."""
    installed = shutil.which("deno", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    assert installed is not None
    with tempfile.TemporaryDirectory(prefix="loopaid-test-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        yield shutil.copy(installed, Path(directory) / "deno")


@pytest.fixture
def config(config: Config, deno: str) -> Config:
    replace = msgspec.structs.replace
    javascript = replace(config.pool.javascript, interpreter=deno)
    return replace(config, pool=replace(config.pool, javascript=javascript))


@pytest.fixture
def language() -> Language:
    return Language.JAVASCRIPT


@pytest.fixture
async def known(client: Client) -> AsyncIterator[str]:
    yield (await client.status()).languages["javascript"]


async def test_functions_scripts_modules_and_typescript(run: Run, known: str) -> None:
    assert known.startswith("2.")
    function = "const path = require('node:path');\nconst main = async (text) => path.basename(text);\n"
    assert (await run(function, ["/a/b"])).outputs == ["b"]
    script = "globalThis.seen = (globalThis.seen || 0) + 1;\nresult = [seen, input_data];\n"
    assert (await run(script, [1, 2], max_concurrency=1)).outputs == [[1, 1], [1, 2]]
    module = "import { EOL } from 'node:os';\nexport const main = (n) => n + EOL;\n"
    assert (await run(module, [1])).outputs == ["1\n"]
    typed = "interface Input { n: number }\nfunction main(input: Input): number {\n  return input.n * 2;\n}\n"
    assert (await run(typed, [{"n": 2}])).outputs == [4]


async def test_what_goes_wrong_is_told_as_with_node(run: Run) -> None:
    source = (
        "function main(what) {\n  console.log(what);\n  if (what === 'throw') throw new RangeError('no');\n"
        "  if (what === 'nan') return [NaN];\n  if (what === 'abort') process.abort();\n"
        "  if (what === 'never') return new Promise(() => {});\n"
        "  for (const kept = []; what === 'memory'; ) kept.push(new Array(1e5).fill(what));\n"
        "  while (what === 'loop');\n  return what;\n}\n"
    )
    items = ["throw", "nan", "abort", "never", "memory", "ok"]
    ran = await run(source, items, max_concurrency=1)
    assert ran.statuses == ["program_error", "invalid_output", "program_error", "program_error", "memory_limit", "ok"]
    assert [error and error[0] for error in ran.errors] == [
        *("RangeError", "InvalidOutput", "ProcessEnded", "PendingPromise", "MemoryLimit", None)
    ]
    assert (await run(source, ["loop", "ok"], max_concurrency=1, timeout_ms=500)).statuses == ["timeout", "ok"]
    assert [each.stdout for each in ran.results] == [f"{item}\n" for item in items]
    assert ran.results[0].error.traceback == "RangeError: no\n    at main (program.js:3:31)\n"


async def test_items_have_processes_of_their_own(run: Run) -> None:
    source = (
        "let seen = 0;\nfunction main(n) {\n  const fs = require('fs');\n  const found = fs.readdirSync('/tmp');\n"
        "  fs.writeFileSync('/tmp/' + n, 'x');\n  return [++seen, found];\n}\n"
    )
    ran = await run(source, range(3), max_concurrency=1, isolation=Isolation.ITEM)
    assert ran.outputs == [[1, []]] * 3
    assert len(ran.session_ids) == 1


async def test_no_pipe_of_the_daemon_is_left_open_above_an_item(run: Run) -> None:
    """Whoever could write there would say how later items ended."""
    source = (
        "const fs = require('fs');\n"
        "const pipes = (pid) => fs.readdirSync(`/proc/${pid}/fd`).map((fd) => {\n"
        "  try { return fs.readlinkSync(`/proc/${pid}/fd/${fd}`) } catch { return '' }\n"
        "}).filter((link) => link.startsWith('pipe:'));\n"
        "function main() {\n"
        "  const parent = fs.readFileSync(`/proc/${process.ppid}/stat`, 'utf8').replace(/.*\\)/, ')').split(' ')[2];\n"
        "  const links = pipes(parent);\n"
        "  return links.filter((link) => links.indexOf(link) === links.lastIndexOf(link));\n}\n"
    )
    assert (await run(source, [1], isolation=Isolation.ITEM)).outputs == [[]]


async def test_nobody_debugs_the_process_above_an_item(run: Run) -> None:
    source = (
        "const fs = require('fs'), net = require('net');\n"
        "async function main() {\n"
        "  const above = fs.readFileSync(`/proc/${process.ppid}/stat`, 'utf8').replace(/.*\\)/, ')').split(' ')[2];\n"
        "  process.kill(Number(above), 'SIGUSR1');\n"
        "  await new Promise((resolve) => setTimeout(resolve, 500));\n"
        "  return new Promise((resolve) => net.connect(9229, '127.0.0.1')\n"
        "    .on('connect', () => resolve('connected')).on('error', (error) => resolve(error.code)));\n}\n"
    )
    assert (await run(source, [1, 2], isolation=Isolation.ITEM, max_concurrency=1)).outputs == ["ECONNREFUSED"] * 2
