"""Distillation recipes: everything that decides a training run besides the data and the teacher, as TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fieldrun.errors import CheckpointError, RecipeError, UnknownName
from fieldrun.formats.integrity import from_mapping
from fieldrun.student.config import StudentConfig
from fieldrun.toml import read_toml

__all__ = [
    "CompressorRecipe",
    "CorpusRecipe",
    "DistillRecipe",
    "FinetuneRecipe",
    "StudentRecipe",
    "TaskRecipe",
    "TeacherRecipe",
    "TrainingRecipe",
    "is_task_name",
    "load_recipe",
    "recipe_names",
]

SCHEMA = 1
_LEAST_TOKENS = 4  # [CLS], [SEP] and something between them
_RECIPES = Path(__file__).parent / "recipes"


def _whole(what: str, value: object, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RecipeError(f"{what} must be an integer of at least {least}, not {value!r}")


def _number(what: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise RecipeError(f"{what} must be a number within {low:g}..{high:g}, not {value!r}")


def _dtype(what: str, value: object) -> None:
    if value not in ("auto", "float32", "bfloat16"):
        raise RecipeError(f"{what} must be auto, float32 or bfloat16, not {value!r}")


def is_task_name(name: object) -> bool:
    """Say whether a task, and so its head, may be called `name`: letters, digits, `-` and `_`."""
    return isinstance(name, str) and bool(name) and all(c.isalnum() or c in "-_" for c in name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRecipe:
    """How the raw field is read: `layers` is a count (spread evenly) or a list of hidden-state indices."""

    layers: int | tuple[int, ...] = 7
    max_tokens: int = 128
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        if isinstance(self.layers, tuple):
            for layer in self.layers:
                _whole("teacher.layers: an index", layer, 0)
        else:
            _whole("teacher.layers", self.layers)
        _whole("teacher.max_tokens", self.max_tokens, _LEAST_TOKENS)
        _dtype("teacher.dtype", self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRecipe:
    """Fine-tuning of the teacher on all tasks at once, before its field is read.

    `frozen_layers` of its layers, from the embeddings on, keep their weights. A batch is of one task and has at most
    `tokens` tokens, padding included, and `rows` rows.
    """

    learning_rate: float = 5e-5
    head_learning_rate: float = 2e-3
    weight_decay: float = 0.01
    rows: int = 64
    tokens: int = 800
    max_tokens: int = 64
    frozen_layers: int = 3
    dtype: str = "auto"
    checkpoint_steps: int = 500

    def __post_init__(self) -> None:
        for name in ("rows", "tokens", "checkpoint_steps"):
            _whole(f"finetune.{name}", getattr(self, name))
        _whole("finetune.max_tokens", self.max_tokens, _LEAST_TOKENS)
        _whole("finetune.frozen_layers", self.frozen_layers, 0)
        for name in ("learning_rate", "head_learning_rate"):
            _number(f"finetune.{name}", getattr(self, name), 1e-9, 1)
        _number("finetune.weight_decay", self.weight_decay, 0, 1)
        _dtype("finetune.dtype", self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorRecipe:
    """The AN1 compressor: steps of Adam on reconstruction + task + geometry, and the weights of the losses.

    Geometry and `similarity` (of graded pairs) count for the whole field and for its first `prefixes` numbers, so that
    a prefix is a smaller field (Matryoshka representation learning, Kusupati et al. 2022).
    """

    steps: int = 1500
    batch: int = 512
    rows_per_task: int = 128
    learning_rate: float = 2e-3
    dropout: float = 0.1
    reconstruction: float = 1.0
    task: float = 0.3
    geometry: float = 2.0
    similarity: float = 1.0
    prefixes: tuple[int, ...] = (64, 128)

    def __post_init__(self) -> None:
        _whole("compressor.steps", self.steps, 20)  # a tenth of them warms up
        for name in ("batch", "rows_per_task"):
            _whole(f"compressor.{name}", getattr(self, name))
        _number("compressor.learning_rate", self.learning_rate, 1e-9, 1)
        _number("compressor.dropout", self.dropout, 0, 0.9)
        if not isinstance(self.prefixes, list | tuple):
            raise RecipeError(f"compressor.prefixes must be a list of integers, not {self.prefixes!r}")
        object.__setattr__(self, "prefixes", tuple(self.prefixes))
        for prefix in self.prefixes:
            _whole("compressor.prefixes: a prefix", prefix)
        for name in ("reconstruction", "task", "geometry", "similarity"):
            _number(f"compressor.{name}", getattr(self, name), 0, 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRecipe:
    """The student's shape (`fieldrun.student.config.StudentConfig`); the vocabulary is the teacher's."""

    embedding_dim: int = 384
    width: int = 128
    offsets: tuple[int, ...] = (-1, 0, 1)
    ngrams: tuple[tuple[int, ...], ...] = ((-1, 0), (-2, -1, 0))
    ngram_buckets: int = 65521
    mixer_kernel: int = 0
    mixer_width: int = 0
    mean: bool = True
    hidden: int = 128

    def __post_init__(self) -> None:
        config = self.config(vocab_size=1, max_tokens=_LEAST_TOKENS)
        object.__setattr__(self, "offsets", config.offsets)
        object.__setattr__(self, "ngrams", config.ngrams)

    def config(self, vocab_size: int, max_tokens: int) -> StudentConfig:
        """Return the student's shape; `RecipeError` when there can be no such student."""
        try:
            return StudentConfig(vocab_size=vocab_size, max_tokens=max_tokens, **asdict(self))
        except CheckpointError as error:
            raise RecipeError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecipe:
    """The student's training: `epochs` over the texts, and more of them where they come to less than `min_steps`.

    `regression` (of the field), `distill` (the teacher heads' soft labels), `labels` and `geometry` (in-batch
    similarities) weigh the losses; `other_tasks` says how much the soft labels of other tasks count on a text; `pairs`
    weighs the mean loss of the `pair_rows` rows of pair and similarity tasks that come with every batch; `held_out` is
    the share of every train file that is kept for choosing and calibrating. Embedding and n-gram table learn at
    `learning_rate * table_rate`.
    """

    epochs: int = 8
    min_steps: int = 1
    batch: int = 512
    learning_rate: float = 2e-3
    table_rate: float = 1.0
    weight_decay: float = 0.01
    dropout: float = 0.2
    max_tokens: int = 96
    regression: float = 0.5
    distill: float = 2.0
    labels: float = 0.25
    other_tasks: float = 0.2
    geometry: float = 2.0
    pairs: float = 1.0
    pair_rows: int = 32
    held_out: float = 0.05
    dtype: str = "auto"
    checkpoint_steps: int = 400

    def __post_init__(self) -> None:
        for name in ("epochs", "min_steps", "batch", "checkpoint_steps"):
            _whole(f"training.{name}", getattr(self, name))
        _whole("training.max_tokens", self.max_tokens, _LEAST_TOKENS)
        _number("training.learning_rate", self.learning_rate, 1e-9, 1)
        _number("training.table_rate", self.table_rate, 1e-6, 1)
        _number("training.weight_decay", self.weight_decay, 0, 1)
        _number("training.dropout", self.dropout, 0, 0.9)
        _number("training.held_out", self.held_out, 0.001, 0.5)
        _whole("training.pair_rows", self.pair_rows, 0)
        for name in ("regression", "distill", "labels", "other_tasks", "geometry", "pairs"):
            _number(f"training.{name}", getattr(self, name), 0, 1e6)
        _dtype("training.dtype", self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecipe:
    """One task: a folder of the data with `train` files, and a `report` file that is only ever reported on.

    `repeat` is how often an epoch of the student shows its train texts: more for a task with few rows among many. Of a
    pair or similarity task it says how much more often one of its pairs is drawn than a pair of another task.
    `phrases` says that the rows are phrases of one another: only whole sentences are held out then, and their phrases
    are left out. `similarity` is the highest grade of a task whose labels grade the similarity of pairs from 0 on.
    `augment` is how many altered copies of every train text are added to the transfer text, for the teacher to label.
    `tune` is how often fine-tuning the teacher shows the train rows, and `tune_rows` how many of them at most.
    """

    name: str
    train: tuple[str, ...] = ("train.tsv",)
    report: str | None = None
    repeat: int = 1
    phrases: bool = False
    similarity: float = 0
    augment: int = 0
    tune: int = 1
    tune_rows: int | None = None
    licence: str = "unstated"

    def __post_init__(self) -> None:
        if not is_task_name(self.name):
            raise RecipeError(f"a task cannot be named {self.name!r}; use letters, digits, '-' and '_'")
        _whole(f"task {self.name!r}: repeat", self.repeat)
        _whole(f"task {self.name!r}: augment", self.augment, 0)
        _whole(f"task {self.name!r}: tune", self.tune, 0)
        if self.tune_rows is not None:
            _whole(f"task {self.name!r}: tune_rows", self.tune_rows)
        _number(f"task {self.name!r}: similarity", self.similarity, 0, 1e6)
        if not isinstance(self.phrases, bool):
            raise RecipeError(f"task {self.name!r}: phrases must be true or false, not {self.phrases!r}")
        if isinstance(self.train, str) or not self.train or not all(isinstance(name, str) for name in self.train):
            raise RecipeError(f"task {self.name!r}: train must be a list of file names")
        object.__setattr__(self, "train", tuple(self.train))


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusRecipe:
    """Unlabelled text, one a line: `rows` are drawn from `file`; the soft labels of `tasks` count fully on it.

    Lines of more than `max_chars` characters are left out. With `treebank`, every second line has its negations apart
    ("does n't"), as the Penn Treebank and with it SST-2 write them.
    """

    file: str
    rows: int
    max_chars: int = 1000
    treebank: bool = False
    tasks: tuple[str, ...] = ()
    licence: str = "unstated"

    def __post_init__(self) -> None:
        if isinstance(self.tasks, str):
            raise RecipeError(f"corpus {self.file!r}: tasks must be a list of task names")
        object.__setattr__(self, "tasks", tuple(self.tasks))
        _whole(f"corpus {self.file!r}: rows", self.rows)
        _whole(f"corpus {self.file!r}: max_chars", self.max_chars)
        if not isinstance(self.treebank, bool):
            raise RecipeError(f"corpus {self.file!r}: treebank must be true or false, not {self.treebank!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRecipe:
    """A whole training run. Without `tasks`, every folder of the data that has a `train.tsv` is a task.

    Without `finetune` the teacher stays as it is.
    """

    name: str
    seed: int
    licence: str
    teacher: TeacherRecipe
    finetune: FinetuneRecipe | None
    compressor: CompressorRecipe
    student: StudentRecipe
    training: TrainingRecipe
    tasks: tuple[TaskRecipe, ...]
    corpus: tuple[CorpusRecipe, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.licence, str):
            raise RecipeError("name and licence must be strings")
        _number("seed", self.seed, 0, 2**31 - 1)
        _whole("seed", self.seed, 0)
        for what, names in (("task", [t.name for t in self.tasks]), ("corpus", [c.file for c in self.corpus])):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise RecipeError(f"the {what} {twice!r} stands twice in the recipe")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON."""
        return asdict(self)


def recipe_names() -> tuple[str, ...]:
    """Return the names of the shipped recipes."""
    return tuple(sorted(path.stem for path in _RECIPES.glob("*.toml")))


def load_recipe(recipe: str | Path) -> DistillRecipe:
    """Read a shipped recipe by name, or the recipe file at a path.

    Raises:
        UnknownName: neither a shipped name nor a `.toml` file.
        RecipeError: not TOML, an unknown or missing key, or a value that makes no sense.
    """
    path = Path(recipe)
    if path.suffix != ".toml":
        if str(recipe) not in recipe_names():
            raise UnknownName("recipe", str(recipe), (*recipe_names(), "or the path of a .toml file"))
        path = _RECIPES / f"{recipe}.toml"
    value: dict[str, Any] = read_toml(path)
    schema = value.pop("schema", None)
    if schema != SCHEMA:
        raise RecipeError(f"{path} has schema {schema!r}; this fieldrun reads schema {SCHEMA}")
    sections: Mapping[str, type] = {
        "teacher": TeacherRecipe,
        "compressor": CompressorRecipe,
        "student": StudentRecipe,
        "training": TrainingRecipe,
    }
    if "finetune" in value:
        value["finetune"] = from_mapping(FinetuneRecipe, value["finetune"], f"{path}: [finetune]", RecipeError)
    for section, cls in sections.items():
        value[section] = from_mapping(cls, value.get(section, {}), f"{path}: [{section}]", RecipeError)
    for section, cls in (("tasks", TaskRecipe), ("corpus", CorpusRecipe)):
        entries = value.get(section, [])
        if not isinstance(entries, list):
            raise RecipeError(f"{path}: write [[{section}]], once per entry")
        value[section] = tuple(from_mapping(cls, entry, f"{path}: [[{section}]]", RecipeError) for entry in entries)
    value = {"name": path.stem, "seed": 0, "licence": "unstated", "finetune": None} | value
    result: DistillRecipe = from_mapping(DistillRecipe, value, str(path), RecipeError)
    return result
