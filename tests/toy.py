"""A toy student of a few kB: real tokenizer, random weights, three tasks."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from fieldrun.formats.tensors import Array
from fieldrun.heads.head import Head
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.config import StudentConfig

# fmt: off
WORDS = [
    "a", "all", "and", "answer", "at", "bad", "best", "but", "card", "cash", "did", "do",
    "does", "film", "for", "from", "good", "great", "have", "how", "i", "in", "is", "it",
    "just", "my", "no", "not", "of", "on", "one", "rain", "remember", "the", "this", "to",
    "too", "transfer", "very", "was", "wet", "what", "when", "where", "who", "why", "will", "with",
    "work", "wrote", "you",
]
# fmt: on
TASKS = {"mood": ("bad", "good"), "intent": ("card", "cash", "other", "transfer")}
PAIR_TASK = "same"


def toy_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer of some words, and of single characters for the others; [PAD] is id 0."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'-"
    pieces += [c for c in letters if c not in pieces] + [f"##{c}" for c in letters]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    return tokenizer


def toy_config(**changes: object) -> StudentConfig:
    """The toy's shape; `changes` replace settings."""
    settings: dict[str, object] = {
        "vocab_size": toy_tokenizer().get_vocab_size(),
        "embedding_dim": 12,
        "width": 16,
        "offsets": (-1, 0, 2),
        "ngrams": ((-1, 0), (-2, -1, 0), (-2, 0)),
        "ngram_buckets": 61,
        "mixer_kernel": 2,
        "mixer_width": 20,
        "mean": True,
        "hidden": 24,
        "field_dim": 32,
    }
    return StudentConfig(**(settings | changes))  # type: ignore[arg-type]


def toy_checkpoint(seed: int = 0, *, pairs: bool = True, **changes: object) -> Checkpoint:
    """A checkpoint with random weights of the sizes that training gives."""
    rng = np.random.default_rng(seed)
    config = toy_config(**changes)
    tensors = {}
    for name, shape in config.shapes().items():
        fan_in = int(np.prod(shape[:-1])) if name.endswith("weight") and name != "window.weight" else shape[-1]
        tensors[name] = (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
    tensors["embedding"][0] = 0
    if config.mean:
        tensors["pool.weight"] = np.abs(tensors["pool.weight"])

    def head(name: str, kind: str, labels: tuple[str, ...], inputs: int) -> Head:
        weight = rng.standard_normal((inputs, len(labels))).astype(np.float32)
        bias = rng.standard_normal(len(labels)).astype(np.float32)
        return Head(name=name, kind=kind, labels=labels, weight=weight, bias=bias, temperature=1.5)

    heads = [head(name, "single", labels, config.field_dim) for name, labels in TASKS.items()]
    if pairs:
        heads.append(head(PAIR_TASK, "pair", ("no", "yes"), 4 * config.field_dim))
    return Checkpoint(
        name="toy",
        config=config,
        tensors=tensors,
        tokenizer=toy_tokenizer().to_str().encode("utf-8"),
        heads=tuple(heads),
        licence="Apache-2.0",
        usage=toy_usage(config, seed),
    )


def toy_usage(config: StudentConfig, seed: int = 0) -> dict[str, Array]:
    """Counts as uneven as those of text are: the k-th most frequent token comes a k-th as often as the first."""
    rng = np.random.default_rng(seed)
    sizes = {"tokens": config.vocab_size} | ({"ngrams": config.ngram_buckets} if config.ngrams else {})
    return {name: (10_000 / (1 + rng.permutation(n))).astype(np.int32) for name, n in sizes.items()}
