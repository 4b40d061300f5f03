"""A random BERT of a few kB as the teacher, and data that a student can learn in seconds."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fieldrun.distill import distill
from fieldrun.heads.trained import Checkpoint
from tests.toy import toy_tokenizer

RECIPE = """
schema = 1
name = "tiny"
seed = 3
licence = "Apache-2.0"
[teacher]
max_tokens = 32
dtype = "float32"
[compressor]
steps = 80
batch = 32
rows_per_task = 32
[student]
embedding_dim = 16
width = 16
ngram_buckets = 61
mixer_kernel = 2
mixer_width = 20
hidden = 24
[training]
epochs = 20
batch = 64
max_tokens = 24
checkpoint_steps = 5
dtype = "float32"
[[corpus]]
file = "talk"
rows = 40
tasks = ["mood"]
"""
MOODS = {"bad": "bad rain wet work", "good": "best good great film"}
INTENTS = {"card": "card this just", "cash": "cash not no", "transfer": "transfer from to"}
OTHERS = "a all and answer at did do for have how i in is it my of on one the too very was what when who will you"


def write_tsv(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    """Write labelled rows with the header that their width asks for."""
    header = ("text", "label") if len(rows[0]) == 2 else ("text_a", "text_b", "label")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in (header, *rows)), "utf-8")


def sentence(rng: random.Random, words: str = "") -> str:
    """Some words that mean nothing here, with one of `words` among them."""
    chosen = [rng.choice(OTHERS.split()) for _ in range(rng.randint(2, 6))]
    if words:
        chosen.insert(rng.randint(0, len(chosen)), rng.choice(words.split()))
    return " ".join(chosen)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a random BERT of 4 layers, 32 wide; treat it as read-only."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = toy_tokenizer()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two single tasks, a pair task and a corpus; treat it as read-only."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    for task, classes in (("mood", MOODS), ("intent", INTENTS)):
        rows = [(sentence(rng, words), label) for label, words in classes.items() for _ in range(70)]
        write_tsv(folder / task / "train.tsv", rows[::2] + rows[1::2])
        rows = [(sentence(rng, words), label) for label, words in classes.items() for _ in range(20)]
        write_tsv(folder / task / "test.tsv", rows)
    labels = [rng.choice(tuple(MOODS)) for _ in range(280)]
    pairs = [(sentence(rng, MOODS[a]), sentence(rng, MOODS[b]), a, b) for a, b in itertools.pairwise(labels)]
    judged = [(a, b, "yes" if x == y else "no") for a, b, x, y in pairs]
    write_tsv(folder / "same" / "train.tsv", judged[:220])
    write_tsv(folder / "same" / "dev.tsv", judged[220:])
    (folder / "corpus").mkdir()
    (folder / "corpus" / "talk.txt").write_text("".join(sentence(rng) + "\n" for _ in range(60)), "utf-8")
    return folder


@pytest.fixture(scope="session")
def graded(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """`data` with `alike`, pairs graded from 0 to 5 by how many of two things they agree in; read-only."""
    folder, rng = tmp_path_factory.mktemp("graded") / "data", random.Random(1)
    shutil.copytree(data, folder)
    rows = []
    for _ in range(260):
        (a, b), (c, d) = rng.choices(tuple(MOODS), k=2), rng.choices(tuple(INTENTS), k=2)
        first = sentence(rng, MOODS[a]) + " " + sentence(rng, INTENTS[c])
        second = sentence(rng, MOODS[b]) + " " + sentence(rng, INTENTS[d])
        rows.append((first, second, str(2.5 * ((a == b) + (c == d)))))
    write_tsv(folder / "alike" / "train.tsv", rows[:200])
    write_tsv(folder / "alike" / "dev.tsv", rows[200:])
    return folder


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file that trains in seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE, "utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, recipe: Path, data: Path, teacher: Path) -> Path:
    """The checkpoint of an uninterrupted run, with its work folder beside it; treat both as read-only."""
    out = tmp_path_factory.mktemp("trained") / "checkpoint"
    assert isinstance(distill(recipe, data, teacher, out), Checkpoint)
    return out
