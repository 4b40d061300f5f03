"""Copies: what counts as the same text, and that it never leaks from one side of a split to the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fieldrun.evaluation.caveats import FEW_ROWS
from fieldrun.evaluation.copies import count_copies, join_labels, near_equal_labels, numbered, text_key
from fieldrun.evaluation.metrics import balanced_accuracy
from fieldrun.heads.fit import HeadTrainer, fit_fields, fit_head
from fieldrun.heads.selection import deal


class Words:
    """A model whose field is drawn at random for each text: labels cannot be learnt from it, only remembered."""

    def forward(self, texts: Sequence[str]) -> Any:
        rows = [np.random.default_rng(list(text.lower().strip().encode())).standard_normal(64) for text in texts]
        return SimpleNamespace(field=np.array(rows, np.float32), dropped=np.zeros(len(texts), np.int64))


TEXTS = [f"text number {i}" for i in range(60)]
LABELS = [str(label) for label in np.random.default_rng(0).integers(0, 3, 60)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a good film", " A  good\tFILM\n"),
        ("caf\u00e9", "cafe\u0301"),
        ("\ufb01lm", "film"),
        ("stra\u00dfe", "STRASSE"),
        (("a", "b"), ["A ", "B"]),
        ("a\u00a0b", "a b"),
        ("a film", "\ufeffa\u200b fi\u00adlm\u200d"),
        ("a film", "a \u200b film\x00\x7f"),
    ],
)
def test_what_copies_have_in_common(one: Any, other: Any) -> None:
    assert text_key(one) == text_key(other)


def test_what_are_no_copies() -> None:
    assert text_key("cafe") != text_key("caf\u00e9")
    assert text_key(("a", "b")) != text_key(("b", "a"))
    assert text_key("a b") != text_key("ab")


def test_groups_go_through_others() -> None:
    assert numbered(["a", "b", "a", "c"], [1, 2, 3, 2]) == [0, 1, 0, 1]
    assert numbered(["a", "b", "c", "a"], [1, 2, 1, 2]) == [0, 0, 0, 0]


def test_counts() -> None:
    found = count_copies(["a", "a", "a", "b", "c"], ["x", "x", "y", "x", "x"])
    assert found.to_dict() == {"copies": 1, "conflicting": 3}


@pytest.mark.parametrize("times", [2, 5, 10])
def test_the_same_rows_several_times_are_no_better(times: int) -> None:
    once, often = fit_head(Words(), TEXTS, LABELS), fit_head(Words(), TEXTS * times, LABELS * times)
    np.testing.assert_array_equal(once.weight, often.weight)
    assert often.about["cv"] == once.about["cv"]
    assert (often.about["n"], often.about["copies"]) == (60, 60 * (times - 1))
    assert f"{60 * (times - 1)} rows repeat another row; copies weigh once" in often.about["warnings"]
    weighed = fit_head(Words(), TEXTS * times, LABELS * times, weigh_copies=True)
    assert weighed.about["n"] == 60 * times
    assert weighed.about["cv"]["accuracy"] < 0.6, "random labels cannot be predicted"
    assert weighed.about["cv"]["n"] == 60


def test_copies_of_another_case_leak_no_more_than_equal_ones() -> None:
    head = fit_head(Words(), [*TEXTS, *(f" {text.upper()} " for text in TEXTS)], LABELS * 2)
    assert head.about["copies"] == 60
    assert head.about["cv"] == fit_head(Words(), TEXTS, LABELS).about["cv"]


def test_rows_that_are_added_twice_to_a_trainer() -> None:
    trainer = HeadTrainer(Words()).add(TEXTS, LABELS).add(TEXTS, LABELS)
    assert len(trainer) == 120
    assert trainer.fit().about["n"] == 60
    assert HeadTrainer(Words(), weigh_copies=True).add(TEXTS, LABELS).add(TEXTS, LABELS).fit().about["n"] == 120


def test_fields_that_are_equal_are_on_one_side() -> None:
    x = Words().forward(TEXTS).field
    once, often = fit_fields(x, LABELS), fit_fields(np.repeat(x, 4, axis=0), np.repeat(LABELS, 4))
    assert once.about["cv"] == often.about["cv"]


def test_pairs_and_conflicts() -> None:
    pairs = list(itertools.pairwise(TEXTS))
    head = fit_head(Words(), [*pairs, *pairs, pairs[0]], [*LABELS[1:], *LABELS[1:], "other"])
    assert (head.about["copies"], head.about["conflicting"]) == (59, 3)
    assert any("3 rows have a text that is there with another label too" in said for said in head.about["warnings"])


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_never_divided_and_no_class_is_held_out_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, groups = rng.integers(0, 5, 40), rng.integers(0, 20, 40)
    held: list[list[int]] = []
    for turn in range(3):
        splits = list(deal(y, np.arange(40), 5, turn, groups))
        for trained, out in splits:
            assert not set(groups[trained]) & set(groups[out])
            assert set(y[trained]) == set(y)
        held.append(sorted(np.concatenate([out for _, out in splits]).tolist()))
    assert held[0] == held[1] == held[2]


def test_labels_that_no_figure_covers_are_named() -> None:
    labels = ["other"] * 59 + ["refund"]
    cv = fit_head(Words(), TEXTS, labels).about["cv"]
    assert (cv["accuracy"], cv["never_held_out"]) == (1.0, ["refund"])
    head = fit_head(Words(), TEXTS * 3, labels * 3, weigh_copies=True)
    assert head.about["cv"]["never_held_out"] == ["refund"], "three copies are one text"
    said = " | ".join(head.about["warnings"])
    assert "never held out, so that no accuracy covers them: 'refund'" in said
    assert f"fewer than {FEW_ROWS} rows: 'refund'" in said


def test_balanced_accuracy_is_beside_accuracy() -> None:
    labels = ["other"] * 50 + ["refund"] * 10
    cv = fit_head(Words(), TEXTS, labels).about["cv"]
    assert cv["accuracy"] > 0.8
    assert cv["balanced_accuracy"] < 0.7
    assert cv["balanced_ci95"][0] <= cv["balanced_accuracy"] <= cv["balanced_ci95"][1]
    assert balanced_accuracy([90, 1], [100, 2])[0] == pytest.approx(0.7)
    value, low, high = balanced_accuracy([5, 0, 0], [10, 0, 4])
    assert (value, low < 0.25 < high) == (0.25, True)


def test_labels_that_are_nearly_equal_are_said_and_joined_on_request() -> None:
    spellings = ["pos", "pos", "Pos", "pos ", "caf\u00e9", "cafe\u0301"]
    assert near_equal_labels(["pos", "pos\u200b", "\ufeffpos", "neg"]) == [("pos", "pos\u200b", "\ufeffpos")]
    assert near_equal_labels(spellings) == [("Pos", "pos", "pos "), ("cafe\u0301", "caf\u00e9")]
    assert join_labels(spellings) == ["pos"] * 4 + ["caf\u00e9"] * 2
    assert join_labels(["POS", "neg"], ["Pos"]) == ["Pos", "neg"]
    assert join_labels(["pos ", "pos", "neg", "Neg"]) == ["pos", "pos", "Neg", "Neg"]
    labels = [spellings[i % 4] if i % 5 else "neg" for i in range(60)]
    head = fit_head(Words(), TEXTS, labels)
    assert any("'Pos', 'pos', 'pos '" in said for said in head.about["warnings"])
    joined = fit_head(Words(), TEXTS, labels, join_labels=True)
    assert joined.labels == ("neg", "pos")
    assert not any("differ only" in said for said in joined.about["warnings"])
