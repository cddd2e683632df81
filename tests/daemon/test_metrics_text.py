"""The text format, read as strictly as a scraper may."""

from __future__ import annotations

import pytest

from loopaid.core.latency import LatencyHistogram
from loopaid.daemon.metrics import Metric, Sample, render
from loopaid.testing.prometheus import MalformedMetrics, parse


def test_what_is_rendered_reads_back() -> None:
    nasty = 'a "quoted" \\ back\nslash'
    text = render(
        [
            Metric("items_total", "counter", "Items.", [Sample(3, {"status": "ok", "language": nasty}), Sample(4.5)]),
            Metric("nothing", "gauge", "None yet.", []),
            Metric("s", "summary", "Sum.", [Sample(0.25, suffix="_sum"), Sample(2, suffix="_count")]),
        ]
    )
    assert parse(text) == {
        "loopaid_items_total": {(("language", nasty), ("status", "ok")): 3.0, (): 4.5},
        "loopaid_nothing": {},
        "loopaid_s_sum": {(): 0.25},
        "loopaid_s_count": {(): 2.0},
    }


@pytest.mark.parametrize(
    "text",
    [
        "a 1\n",
        "# TYPE a counter\na 1\n",
        "# HELP a A.\n# TYPE a counter\na 1",
        "# HELP a A.\n# TYPE a counter\na one\n",
        "# HELP a A.\n# TYPE a counter\nb 1\n",
        "# HELP a A.\n# TYPE a counter\na 1\na 2\n",
        "# HELP a A.\n# TYPE a metre\na 1\n",
        '# HELP a A.\n# TYPE a gauge\na{l="x} 1\n',
        '# HELP a A.\n# TYPE a gauge\na{l="x\\q"} 1\n',
        '# HELP a A.\n# TYPE a gauge\na{l="x",l="y"} 1\n',
        '# HELP a A.\n# TYPE a gauge\na{1="x"} 1\n',
        "# HELP a A.\n# TYPE a gauge\n# HELP a A.\n# TYPE a gauge\na 1\n",
        '# HELP a A.\n# TYPE a histogram\na_bucket{le="1"} 1\na_sum 1\na_count 1\n',
        '# HELP a A.\n# TYPE a histogram\na_bucket{le="1"} 2\na_bucket{le="+Inf"} 1\na_sum 1\na_count 1\n',
        '# HELP a A.\n# TYPE a histogram\na_bucket{le="+Inf"} 2\na_sum 1\na_count 1\n',
        '# HELP a A.\n# TYPE a histogram\na_bucket{le="+Inf"} 1\na_count 1\n',
        "# HELP a A.\n# TYPE a counter\na -1\n",
    ],
)
def test_the_reader_takes_nothing_malformed(text: str) -> None:
    with pytest.raises(MalformedMetrics):
        parse(text)


def test_a_histogram_counts_up_to_a_bound_within_its_resolution() -> None:
    histogram, whole = LatencyHistogram(), LatencyHistogram()
    histogram.add([1])
    histogram.also = whole
    histogram.add([5, 10, 10, 1_000, 2_000_000])
    assert [histogram.count_up_to(bound) for bound in (0, 1, 9, 10, 900, 1_100, 10**7)] == [0, 1, 2, 4, 4, 5, 6]
    assert (whole.count, whole.total_us, whole.min_us, whole.max_us) == (5, 2_001_025, 5, 2_000_000)
