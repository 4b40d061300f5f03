"""Pruning: a domain's own texts are cut and answered as before, others fall back to pieces that are there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import fieldrun
from fieldrun.errors import ExportError, RecipeError, UsageError
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.formats.tensors import Array
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.oracle import forward
from fieldrun.student.windows import buckets_of, pad_ids
from fieldrun_exporters.calibrate import tokenize
from fieldrun_exporters.recipe import Prune, load_recipe
from fieldrun_exporters.student.passes import prune_vocabulary as module
from fieldrun_exporters.student.passes.prune_vocabulary import prune_vocabulary
from tests.exporters.student.test_palettize import RECIPE
from tests.toy import toy_checkpoint

WORDS = ["how", "do", "i", "transfer", "cash", "from", "my", "card", "to", "you"]
RNG = np.random.default_rng(0)
DOMAIN = [" ".join(RNG.choice(WORDS, size=int(n))) for n in RNG.integers(2, 9, size=400)]
TOY = toy_checkpoint(0, ngram_buckets=400_009)  # few collisions, so that what comes back is exact
PRUNED, REPORT = prune_vocabulary(TOY, tokenize(TOY, DOMAIN, 64), Prune(ngram_buckets=300_007))


def fields(checkpoint: Checkpoint, texts: list[str]) -> Array:
    return np.concatenate(
        [forward(checkpoint.config, checkpoint.tensors, pad_ids([ids])) for ids in tokenize(checkpoint, texts, 64)]
    )


def test_the_domain_is_cut_and_answered_as_before() -> None:
    texts = DOMAIN[:60]
    old, new = (Tokenizer.from_str(c.tokenizer.decode()) for c in (TOY, PRUNED))
    assert [old.encode(t).tokens for t in texts] == [new.encode(t).tokens for t in texts]
    assert REPORT.changed["embedding"]["texts_cut_as_before"] == 1
    gap = np.abs(fields(TOY, texts) - fields(PRUNED, texts)).max(1)
    shared: dict[int, set[int]] = {}
    met = []
    for ids, renamed in zip(tokenize(TOY, DOMAIN, 64), tokenize(PRUNED, DOMAIN, 64), strict=True):
        buckets = [buckets_of(c.config, pad_ids([s])).ravel() for c, s in ((TOY, ids), (PRUNED, renamed))]
        for before, after in zip(*(b.tolist() for b in buckets), strict=True):
            shared.setdefault(after, set()).add(before)
        met.append(buckets[1].tolist())
    alone = np.array([all(len(shared[bucket]) == 1 for bucket in own) for own in met[:60]])
    assert 5 < alone.sum() < 60
    assert gap[alone].max() < 1e-5, "only n-grams that share a bucket of the smaller table may differ"
    assert gap.max() < 0.5


def test_other_texts_fall_back_to_shorter_pieces() -> None:
    new = Tokenizer.from_str(PRUNED.tokenizer.decode())
    assert new.encode("a great film").tokens == [
        *("[CLS]", "a", "g", "##r", "##e", "##a", "##t", "f", "##i", "##l", "##m", "[SEP]")
    ]
    assert np.isfinite(fields(PRUNED, ["a great film", "?", "zzz unknown"])).all()
    vocab = json.loads(PRUNED.tokenizer)["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(len(vocab))) == list(range(PRUNED.config.vocab_size))
    assert vocab["[PAD]"] == 0
    assert set(WORDS) <= set(vocab)
    assert "great" not in vocab
    letters = {piece for piece in json.loads(TOY.tokenizer)["model"]["vocab"] if len(piece.removeprefix("##")) == 1}
    assert letters <= set(vocab)


def test_an_ngram_that_the_domain_lacks_adds_nothing() -> None:
    counts = PRUNED.usage["ngrams"]
    empty = counts == 0
    assert empty.any()
    assert not PRUNED.tensors["ngram"][empty].any()
    assert REPORT.changed["ngram"] == {
        "buckets_before": 400_009,
        "buckets_after": 300_007,
        "buckets_filled": int((~empty).sum()),
    }


def test_the_embedding_keeps_its_rows() -> None:
    before, after = (json.loads(c.tokenizer)["model"]["vocab"] for c in (TOY, PRUNED))
    for piece, number in after.items():
        np.testing.assert_array_equal(PRUNED.tensors["embedding"][number], TOY.tensors["embedding"][before[piece]])
    assert REPORT.bytes_after < REPORT.bytes_before


def test_the_buckets_are_chosen_by_what_the_domain_has() -> None:
    sequences = tokenize(TOY, DOMAIN, 64)
    chosen, _ = prune_vocabulary(TOY, sequences, Prune())
    distinct = set()
    for ids in sequences:
        padded = [0, 0, *ids, 0, 0]
        for t in range(2, len(ids) + 2):
            for kind, gram in enumerate(TOY.config.ngrams):
                distinct.add((kind, *(padded[t + o] for o in gram)))
    found = chosen.config.ngram_buckets
    assert 2 * len(distinct) <= found < 2 * len(distinct) + 200
    assert all(found % factor for factor in range(2, int(found**0.5) + 1))


@pytest.mark.parametrize("kind", ["TemplateProcessing", "BertProcessing"])
def test_a_token_that_only_the_post_processor_names_is_kept(kind: str) -> None:
    tokenizer = json.loads(TOY.tokenizer)
    vocab = tokenizer["model"]["vocab"]
    framed = {name: [name, vocab[name]] for name in ("great", "film")}
    assert not {"great", "film"} & set(json.loads(PRUNED.tokenizer)["model"]["vocab"]), "no text of the domain has them"
    if kind == "TemplateProcessing":
        last = tokenizer["post_processor"]
        last["pair"] = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "great", "type_id": 0}}]
        last["special_tokens"] |= {k: {"id": k, "ids": [i], "tokens": [k]} for k, i in framed.values()}
    else:
        tokenizer["post_processor"] = {"type": kind, "sep": framed["great"], "cls": framed["film"]}
    framing = dataclasses.replace(TOY, tokenizer=json.dumps(tokenizer).encode())
    sequences = tokenize(TOY, DOMAIN, 64)  # as an earlier tokenizer cut them, without those tokens
    pruned, _ = prune_vocabulary(framing, sequences, Prune())
    kept = json.loads(pruned.tokenizer)["model"]["vocab"]
    assert {"great", "film"} <= set(kept)
    said = Tokenizer.from_str(pruned.tokenizer.decode()).encode("card")
    assert said.ids == [kept[token] for token in said.tokens]
    np.testing.assert_array_equal(pruned.tensors["embedding"][kept["great"]], TOY.tensors["embedding"][vocab["great"]])


def test_a_special_token_that_the_student_lacks_is_refused() -> None:
    tokenizer = json.loads(TOY.tokenizer)
    tokenizer["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [9999]
    wrong = dataclasses.replace(TOY, tokenizer=json.dumps(tokenizer).encode())
    with pytest.raises(ExportError, match="the tokenizer names the id 9999, the student has"):
        prune_vocabulary(wrong, tokenize(TOY, DOMAIN, 64), Prune())


def test_rare_pieces_may_go_too() -> None:
    common, report = prune_vocabulary(TOY, tokenize(TOY, [*DOMAIN, "great"], 64), Prune(min_count=2))
    assert "great" not in json.loads(common.tokenizer)["model"]["vocab"]
    assert report.changed["embedding"]["texts_cut_as_before"] == pytest.approx(400 / 401)


def test_what_cannot_be_pruned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = tokenize(TOY, DOMAIN, 64)
    with pytest.raises(ExportError, match="3 texts are too few for a domain; give at least 100"):
        prune_vocabulary(TOY, sequences[:3], Prune())
    with pytest.raises(RecipeError, match=r"prune\.ngram_buckets is 999999, the student has 400009"):
        prune_vocabulary(TOY, sequences, Prune(ngram_buckets=999_999))
    other = json.loads(TOY.tokenizer)
    other["model"]["type"] = "BPE"
    with pytest.raises(ExportError, match="takes WordPiece tokenizers, not 'BPE'"):
        prune_vocabulary(dataclasses.replace(TOY, tokenizer=json.dumps(other).encode()), sequences, Prune())
    for value in (0, -1, 1.5, True):
        with pytest.raises(RecipeError, match=r"prune\.min_count must be an integer of at least 1"):
            Prune(min_count=value)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "_kept", lambda *_: np.arange(TOY.config.vocab_size))
    plain = toy_checkpoint(0, ngrams=(), ngram_buckets=0)
    with pytest.raises(ExportError, match="nothing became smaller"):
        prune_vocabulary(plain, tokenize(plain, DOMAIN, 64), Prune())


BODY = RECIPE.replace("{passes}", '["prune-vocabulary", "fold", "int8"]').replace(
    "{precision}", 'tables = "int8"\ndense = "int8-weights"'
)


def test_a_pruned_bundle_is_smaller_and_proven(toy_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(BODY)
    rows = tmp_path / "rows.tsv"
    rows.write_text("text\tlabel\n" + "".join(f"{text}\tcard\n" for text in DOMAIN[:50]))
    report = fieldrun.export(
        toy_checkpoint, tmp_path / "bundle", recipe=path, calibration=DOMAIN, data={"intent": read_tsv(rows)}
    )
    assert report.passes[0].name == "prune-vocabulary"
    assert report.proof["parts"]["prune-vocabulary"]["mean_cosine"] > 0.7
    assert report.proof["accuracy"]["tasks"]["intent"]["n"] == 50
    whole = fieldrun.export(toy_checkpoint, tmp_path / "whole", calibration=DOMAIN)
    sizes = [(p / "weights.safetensors").stat().st_size for p in (report.path, whole.path)]
    assert sizes[0] < sizes[1]
    for engine in ("native", "numpy", "onnxruntime"):
        assert fieldrun.verify(report.path, engine=engine).passed
    with fieldrun.load(report.path) as model:
        assert model.manifest.network.vocab_size < TOY.config.vocab_size
        assert model.predict(["a great film that nobody foresaw"], "mood")


def test_pruning_wants_the_domains_own_texts(toy_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(BODY)
    with pytest.raises(UsageError, match="prune-vocabulary keeps what your texts use; give them"):
        fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe=path)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"prune-vocabulary", "fold"', '"fold", "prune-vocabulary"', "be in the order prune-vocabulary, fold"),
        ('"prune-vocabulary", "fold"', '"fold"', r"\[prune\] and passes conflict"),
        ("min_count = 2", "least = 2", "unknown keys: least"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((BODY + "\n[prune]\nmin_count = 2\n").replace(old, new))
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)
