"""The student in torch is the student in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fieldrun.distill.student import Student
from fieldrun.student import oracle as reference
from tests.toy import toy_config

NO_MIXER: dict[str, object] = {"mixer_kernel": 0, "mixer_width": 0}
NO_NGRAMS: dict[str, object] = {"ngrams": (), "ngram_buckets": 0}
SHAPES: dict[str, dict[str, object]] = {
    "all": {},
    "no mixer": NO_MIXER,
    "no n-grams": NO_NGRAMS,
    "neither": NO_NGRAMS | NO_MIXER,
    "one offset": {"offsets": (0,)},
    "far offsets": {"offsets": (-4, -1, 0, 1, 8)},
    "three together": {"mixer_kernel": 3, "mixer_width": 7},
    "long n-grams": {"ngrams": ((-1, 0), (1, -2, 0), (0, 2, 4, 8), (-3, 0), (0, 1)), "ngram_buckets": 7},
    "no mean": {"mean": False},
    "no hidden layer": {"hidden": 0},
    "as shipped": {"mean": False, "hidden": 0},
}


def make(**changes: object) -> Student:
    """A student with random weights, those too that start alike."""
    torch.manual_seed(0)
    student = Student(toy_config(**changes)).eval()
    if student.ngram is not None:
        torch.nn.init.normal_(student.ngram.weight)
    if student.pool is not None:
        torch.nn.init.normal_(student.pool)
    return student


def batch(student: Student, *lengths: int) -> torch.Tensor:
    rng = np.random.default_rng(1)
    return torch.from_numpy(
        reference.pad_ids([rng.integers(1, student.config.vocab_size, n).tolist() for n in lengths])
    )


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("lengths", [(1,), (2, 3), (9, 1, 17, 5)])
def test_torch_and_numpy_agree(changes: dict[str, object], lengths: tuple[int, ...]) -> None:
    student = make(**changes)
    ids = batch(student, *lengths)
    with torch.inference_mode():
        field = student(ids).numpy()
    tensors = student.tensors()
    assert {name: tensor.shape for name, tensor in tensors.items()} == student.config.shapes()
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    expected = reference.forward(student.config, tensors, ids.numpy(), float64=True)
    np.testing.assert_allclose(field, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_padding_changes_nothing(changes: dict[str, object]) -> None:
    student = make(**changes)
    ids = batch(student, 6, 11)
    with torch.inference_mode():
        alone = torch.cat([student(ids[:1, :6]), student(ids[1:])])
        padded = student(torch.nn.functional.pad(ids, (0, 13)))
    np.testing.assert_allclose(student(ids).detach(), alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(padded, alone, rtol=0, atol=1e-5)


def test_a_pooling_weight_is_never_negative() -> None:
    student = make()
    assert student.pool is not None
    assert bool((student.pool < 0).any())
    student(batch(student, 5, 8)).sum().backward()
    assert student.pool.grad is not None
    assert student.tensors()["pool.weight"].min() >= 0
    np.testing.assert_array_equal(student.tensors()["pool.weight"], student.pool.detach().abs().numpy())


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_every_weight_learns(changes: dict[str, object]) -> None:
    student = make(**changes)
    student(batch(student, 9, 4, 12)).square().sum().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
    assert student.embedding.weight.grad is not None
    assert not student.embedding.weight.grad[0].any(), "the padding row stays zero"


@pytest.mark.parametrize("width", [12, 16, 20])
def test_a_mixer_starts_near_the_sum_of_its_tokens(width: int) -> None:
    torch.manual_seed(0)
    student = Student(toy_config(mixer_kernel=3, mixer_width=width))
    same = np.tile(np.eye(16, width), (3, 1))
    difference = student.tensors()["mixer.weight"] - same
    assert 0 < np.abs(difference).max() <= 1 / np.sqrt(3 * 16) + 1e-6, "the usual random weights on top"


@pytest.mark.parametrize("hidden", [0, 24])
def test_dropout_is_only_for_training(hidden: int) -> None:
    torch.manual_seed(0)
    student = Student(toy_config(hidden=hidden), dropout=0.5)
    ids = batch(student, 7)
    assert not torch.equal(student.train()(ids), student(ids))
    assert torch.equal(student.eval()(ids), student(ids))


@pytest.mark.parametrize("hidden", [5, 12, 40])
@pytest.mark.parametrize("more", [-3, 0, 6])
def test_start_from_any_embeddings(hidden: int, more: int) -> None:
    student = make()
    config = student.config
    words = np.random.default_rng(0).standard_normal((config.vocab_size + more, hidden)).astype(np.float32)
    student.start_from(words)
    weight = student.embedding.weight.detach().numpy()
    assert np.isfinite(weight).all()
    np.testing.assert_array_equal(weight[0], 0)
    known = weight[1 : config.vocab_size + min(more, 0), : min(hidden, config.embedding_dim)]
    centred = (words - words.mean(0))[1 : config.vocab_size + min(more, 0)]
    if hidden <= config.embedding_dim:
        np.testing.assert_allclose(known, centred * (0.5 / known_std(words)), atol=1e-5)
    else:  # rotated: lengths only shrink
        scale = 0.5 / weight_scale(words, config.embedding_dim)
        assert (np.linalg.norm(known, axis=1) <= np.linalg.norm(centred, axis=1) * scale * 1.01).all()


def known_std(words: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    return float((words - words.mean(0)).std(ddof=1))


def weight_scale(words: np.ndarray[tuple[int, ...], np.dtype[np.float32]], width: int) -> float:
    centred = words - words.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return float((centred @ directions[:, -width:]).std(ddof=1))
