"""Every limit of `[sandbox]`, run into by a real program; the next item never notices."""

from __future__ import annotations

from typing import Any

import pytest

from loopaid.model import Isolation

pytestmark = pytest.mark.slow

PROGRAM = """
import errno, os, signal, threading, time

def forks(n):
    made = 0
    try:
        while made < n:
            if os.fork() == 0:
                signal.pause()
            made += 1
    finally:
        print(made)

def threads(n):
    stop = threading.Event()
    made = 0
    try:
        while made < n:
            threading.Thread(target=stop.wait).start()
            made += 1
    finally:
        stop.set()
        print(made)

def opens(n):
    files = []
    try:
        while len(files) < n:
            files.append(os.open("/dev/null", os.O_RDONLY))
    finally:
        print(len(files))
        for file in files:
            os.close(file)

def one_file(n):
    with open("/tmp/large", "wb", 0) as file:
        try:
            while n > 0:
                n -= file.write(bytes(min(n, 1 << 16)))
        finally:
            os.unlink("/tmp/large")

def many_files(n):
    names = []
    try:
        while n > 0:
            names.append(f"/dev/shm/{len(names)}")
            with open(names[-1], "wb", 0) as file:
                n -= file.write(bytes(1 << 16))
    finally:
        for name in names:
            os.unlink(name)

def a_file_with_a_hole(n):
    with open("/tmp/sparse", "wb", 0) as file:
        os.unlink("/tmp/sparse")
        file.truncate(n)

def memory(n):
    return len(bytearray(n))

def children(n):
    for _ in range(3):
        if os.fork() == 0:
            kept = b"x" * n
            signal.pause()
    time.sleep(60)

def core(_):
    return os.WCOREDUMP(os.system("kill -SEGV $$"))

def main(item):
    name, n = item
    try:
        return globals()[name](n)
    except OSError as error:
        return errno.errorcode[error.errno]
"""
MIB = 1 << 20


@pytest.mark.settings(
    sandbox__processes_max=12, sandbox__files_max=64, sandbox__tmp_bytes=2 * MIB, sandbox__memory_bytes=64 * MIB
)
@pytest.mark.parametrize(
    ("name", "n", "status", "output", "printed"),
    [
        pytest.param("forks", 100, "ok", "EAGAIN", range(1, 12), id="processes_max"),
        pytest.param("threads", 100, "program_error", None, range(1, 12), id="processes_max, of threads"),
        pytest.param("opens", 100, "ok", "EMFILE", range(10, 64), id="files_max"),
        pytest.param("one_file", 8 * MIB, "ok", ("EFBIG", "ENOSPC"), None, id="tmp_bytes, of one file"),
        pytest.param("many_files", 8 * MIB, "ok", "ENOSPC", None, id="tmp_bytes, of all"),
        pytest.param("a_file_with_a_hole", 1 << 50, "ok", "EFBIG", None, id="tmp_bytes, of nothing"),
        pytest.param("memory", 128 * MIB, "memory_limit", None, None, id="memory_bytes, of one process"),
        pytest.param("children", 40 * MIB, "memory_limit", None, None, id="memory_bytes, of all"),
        pytest.param("core", 0, "ok", False, None, id="no core is dumped"),
    ],
)
async def test_a_limit_is_met_and_the_next_item_is_fine(
    name: str, n: int, status: str, output: object, printed: range | None, run: Any
) -> None:
    ran = await run(PROGRAM, [["memory", 1], [name, n], ["memory", 2]], max_concurrency=1)
    assert ran.statuses == ["ok", status, "ok"]
    assert ran.outputs[0::2] == [1, 2]
    assert ran.outputs[1] in (output if isinstance(output, tuple) else (output,))
    if printed is not None:
        assert int(ran.results[1].stdout) in printed
    assert {each.attempt for each in ran.results} == {1}


@pytest.mark.settings(sandbox__files_max=64)
@pytest.mark.parametrize("isolation", Isolation)
async def test_the_fewest_files_that_can_be_set_are_enough(isolation: Isolation, run: Any) -> None:
    ran = await run(PROGRAM, [["opens", 1], ["opens", 100], ["memory", 1]], max_concurrency=1)
    assert ran.outputs == [None, "EMFILE", 1]


@pytest.mark.settings(sandbox__memory_bytes=64 * MIB)
async def test_what_ends_a_session_for_its_memory_is_told(run: Any, inside: Any) -> None:
    ran = await run(PROGRAM, [["children", 40 * MIB]])
    assert ran.errors == [("MemoryLimit", "the session took more memory than [sandbox] memory_bytes")]
    assert ran.results[0].memory_peak_bytes > 64 * MIB
    assert inside.pool.destroyed == {"ended_by_limit": 1}
