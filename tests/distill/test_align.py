"""The aligned field: better cosines on graded pairs, the same answers of every head on one field."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fieldrun.distill import align
from fieldrun.distill.align import align_field
from fieldrun.distill.compressor import TaskHeads, pair_input
from fieldrun.distill.student import Student
from tests.toy import toy_config

IDS = torch.randint(1, 60, (400, 6), generator=torch.Generator().manual_seed(1))


def planted(student: Student) -> torch.Tensor:
    """Grades of the pairs of IDS: the cosines of half of the centred field."""
    with torch.no_grad():
        field = student(IDS)
    field = (field - field.mean(0))[:, :16]  # the mean and the second half say nothing of the grade
    return functional.cosine_similarity(field[0::2], field[1::2])


def toy_student() -> tuple[Student, TaskHeads]:
    torch.manual_seed(0)
    student = Student(toy_config()).eval()
    return student, TaskHeads({"mood": nn.Linear(32, 3), "same": nn.Linear(128, 2)})


def loss_of(student: Student, grades: torch.Tensor, k: int) -> float:
    with torch.no_grad():
        field = student(IDS)[:, :k]
        return float((functional.cosine_similarity(field[0::2], field[1::2]) - grades).square().mean())


def test_cosines_get_nearer_and_logits_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "_STEPS", 200)
    student, heads = toy_student()
    grades = planted(student)
    with torch.no_grad():
        field = student(IDS)
        logits, pair = heads["mood"](field), heads["same"](pair_input(field[0::2], field[1::2]))
    before = [loss_of(student, grades, k) for k in (32, 8)]
    told = align_field(student, heads, [(field[:300], grades[:150])], [(field[300:], grades[150:])], (8, 64), 3)
    for k, old in zip((32, 8), before, strict=True):
        assert loss_of(student, grades, k) < 0.8 * old
    assert told["held_out_loss"]["after"] < told["held_out_loss"]["before"]
    assert told["step"] > 0
    with torch.no_grad():
        torch.testing.assert_close(heads["mood"](student(IDS)), logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(heads["same"](pair_input(field[0::2], field[1::2])), pair)


def test_nothing_changes_when_no_step_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "_STEPS", 40)
    student, heads = toy_student()
    with torch.no_grad():
        field = student(IDS)
    perfect = functional.cosine_similarity(field[0::2], field[1::2])
    told = align_field(student, heads, [(field, perfect)], [(field, perfect)], (), 3)
    assert told["held_out_loss"] == {"before": 0, "after": 0}
    with torch.no_grad():
        torch.testing.assert_close(student(IDS), field)
