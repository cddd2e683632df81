from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from loopaid.bench import program
from loopaid.bench.workload import FUNCTION, ONE_MS, PRINTING, SCRIPT, Checked, Workload
from loopaid.errors import LoopaidError
from loopaid.model import Item


def block(first: int, stop: int, **changes: Any) -> Any:
    """Results as they have to be, each with `changes`."""
    return [
        SimpleNamespace(**({"index": n, "id": str(n), "output": {"output": 2 * n}, "stdout": ""} | changes))
        for n in range(first, stop)
    ]


def test_every_program_gives_what_is_due(capsys: pytest.CaptureFixture[str]) -> None:
    workload = Workload(3)
    for source in (FUNCTION, PRINTING, ONE_MS):
        namespace: dict[str, Any] = {}
        exec(source, namespace)
        assert list(map(namespace["main"], workload.inputs())) == workload.outputs(0, 3)
    namespace = {"input_data": {"value": 21}}
    exec(SCRIPT, namespace)
    assert namespace["result"] == {"output": 42} == program.main({"value": 21})


def test_items_with_ids_have_the_inputs_of_those_without() -> None:
    assert list(Workload(2, with_ids=True).items()) == [
        Item(input={"value": 0}, id="item-0"),
        Item(input={"value": 1}, id="item-1"),
    ]
    assert list(Workload(2).items()) == [{"value": 0}, {"value": 1}]


def test_right_results_in_any_order_of_blocks_are_complete() -> None:
    results = Checked(Workload(5))
    results.take(block(3, 5))
    results.take(block(0, 3))
    results.complete()
    assert results.received == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (block(2, 4, output={"output": 3}), r"a wrong result, \{'output': 4\} was due"),
        (block(2, 4, output=None), "a wrong result"),
        (block(2, 4, stdout="?"), "a wrong result"),
        (block(2, 4, id="7"), "of nobody's item"),
        (block(1, 3), "twice"),
        (block(9, 11), "of nobody's item"),
    ],
)
def test_a_wrong_result_is_noticed(wrong: Any, message: str) -> None:
    results = Checked(Workload(10))
    results.take(block(0, 2))
    with pytest.raises(LoopaidError, match=message):
        results.take(wrong)


def test_a_missing_result_is_noticed() -> None:
    results = Checked(Workload(3))
    results.take(block(0, 2))
    with pytest.raises(LoopaidError, match="1 of 3 results are missing"):
        results.complete()
