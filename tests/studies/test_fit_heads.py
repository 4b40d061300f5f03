"""The draw of examples, and the table from a record."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fieldrun_benchmarks.harness.record import write_record
from studies.fit_heads.measure import draw
from studies.tables import render


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 5))
def test_so_many_of_every_label_or_all_there_are(labels: list[str], per_label: int, seed: int) -> None:
    chosen = draw(labels, per_label, seed)
    assert len(set(chosen)) == len(chosen)
    assert chosen == draw(labels, per_label, seed)
    have = Counter(labels)
    assert Counter(labels[i] for i in chosen) == {label: min(per_label, n) for label, n in have.items()}


def test_the_table_says_who_is_better_and_by_how_much(tmp_path: Path) -> None:
    def run(ours: float, theirs: float) -> dict[str, object]:
        return {"rows": 16, "fit_head": {"accuracy": ours}, "scikit_learn": {"accuracy": theirs}}

    values = {
        "tasks": {
            "imdb": {"labels": 2, "n": 4000, "unseen": True, "examples": {"8": [run(0.8, 0.79), run(0.82, 0.8)]}},
            "trec": {"labels": 6, "n": 500, "unseen": False, "examples": {"all": [run(0.9, 0.91)]}},
        },
        "timed": {"labels": 20, "rows": 1280, "median_s": 0.221},
    }
    write_record(tmp_path / "fit-heads.json", "fit-heads", "a command", json.loads(json.dumps(values)))
    page = render("<!-- table: fit-heads -->\n<!-- end -->", tmp_path)
    assert "| imdb, unseen | 2 | 4,000 | 8 a label | 2 | 80.0 / 82.0 | 79.0 / 80.0 | +1.5 |" in page
    assert "| trec | 6 | 500 | all rows | 1 | 90.0 | 91.0 | -1.0 |" in page
    assert "20 labels from 1,280 texts: 0.22 s" in page
