"""Distillation recipes: everything that decides a training run besides the data and the teacher, as TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fieldrun.errors import CheckpointError, RecipeError, UnknownName
from fieldrun.student import StudentConfig, from_mapping
from fieldrun.toml import read_toml

__all__ = [
    "CompressorRecipe",
    "CorpusRecipe",
    "DistillRecipe",
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
class CompressorRecipe:
    """The AN1 compressor: steps of Adam on reconstruction + task + geometry, and the weights of the three losses."""

    steps: int = 1500
    batch: int = 512
    rows_per_task: int = 128
    learning_rate: float = 2e-3
    dropout: float = 0.1
    reconstruction: float = 1.0
    task: float = 0.3
    geometry: float = 2.0

    def __post_init__(self) -> None:
        _whole("compressor.steps", self.steps, 20)  # a tenth of them warms up
        for name in ("batch", "rows_per_task"):
            _whole(f"compressor.{name}", getattr(self, name))
        _number("compressor.learning_rate", self.learning_rate, 1e-9, 1)
        _number("compressor.dropout", self.dropout, 0, 0.9)
        for name in ("reconstruction", "task", "geometry"):
            _number(f"compressor.{name}", getattr(self, name), 0, 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRecipe:
    """The student's shape (`fieldrun.student.StudentConfig`); the vocabulary is the teacher's."""

    embedding_dim: int = 384
    width: int = 192
    offsets: tuple[int, ...] = (-1, 0, 1)
    ngram_orders: tuple[int, ...] = (2, 3)
    ngram_buckets: int = 65521
    mixer_kernel: int = 0
    hidden: int = 256

    def __post_init__(self) -> None:
        config = self.config(vocab_size=1, max_tokens=_LEAST_TOKENS)
        object.__setattr__(self, "offsets", config.offsets)
        object.__setattr__(self, "ngram_orders", config.ngram_orders)

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
    similarities) weigh the losses; `other_tasks` says how much the soft labels of other tasks count on a text;
    `held_out` is the share of every train file that is kept for choosing and calibrating.
    """

    epochs: int = 8
    min_steps: int = 1
    batch: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    dropout: float = 0.2
    max_tokens: int = 96
    regression: float = 0.5
    distill: float = 2.0
    labels: float = 0.25
    other_tasks: float = 0.2
    geometry: float = 2.0
    held_out: float = 0.05
    dtype: str = "auto"
    checkpoint_steps: int = 400

    def __post_init__(self) -> None:
        for name in ("epochs", "min_steps", "batch", "checkpoint_steps"):
            _whole(f"training.{name}", getattr(self, name))
        _whole("training.max_tokens", self.max_tokens, _LEAST_TOKENS)
        _number("training.learning_rate", self.learning_rate, 1e-9, 1)
        _number("training.weight_decay", self.weight_decay, 0, 1)
        _number("training.dropout", self.dropout, 0, 0.9)
        _number("training.held_out", self.held_out, 0.001, 0.5)
        for name in ("regression", "distill", "labels", "other_tasks", "geometry"):
            _number(f"training.{name}", getattr(self, name), 0, 1e6)
        _dtype("training.dtype", self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecipe:
    """One task: a folder of the data with `train` files, and a `report` file that is only ever reported on.

    `repeat` is how often an epoch of the student shows its train texts: more for a task with few rows among many.
    """

    name: str
    train: tuple[str, ...] = ("train.tsv",)
    report: str | None = None
    repeat: int = 1
    licence: str = "unstated"

    def __post_init__(self) -> None:
        if not is_task_name(self.name):
            raise RecipeError(f"a task cannot be named {self.name!r}; use letters, digits, '-' and '_'")
        _whole(f"task {self.name!r}: repeat", self.repeat)
        if isinstance(self.train, str) or not self.train or not all(isinstance(name, str) for name in self.train):
            raise RecipeError(f"task {self.name!r}: train must be a list of file names")
        object.__setattr__(self, "train", tuple(self.train))


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusRecipe:
    """Unlabelled text, one a line: `rows` are drawn from `file`; the soft labels of `tasks` count fully on it."""

    file: str
    rows: int
    tasks: tuple[str, ...] = ()
    licence: str = "unstated"

    def __post_init__(self) -> None:
        if isinstance(self.tasks, str):
            raise RecipeError(f"corpus {self.file!r}: tasks must be a list of task names")
        object.__setattr__(self, "tasks", tuple(self.tasks))
        _whole(f"corpus {self.file!r}: rows", self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRecipe:
    """A whole training run. Without `tasks`, every folder of the data that has a `train.tsv` is a task."""

    name: str
    seed: int
    licence: str
    teacher: TeacherRecipe
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
    for section, cls in sections.items():
        value[section] = from_mapping(cls, value.get(section, {}), f"{path}: [{section}]", RecipeError)
    for section, cls in (("tasks", TaskRecipe), ("corpus", CorpusRecipe)):
        entries = value.get(section, [])
        if not isinstance(entries, list):
            raise RecipeError(f"{path}: write [[{section}]], once per entry")
        value[section] = tuple(from_mapping(cls, entry, f"{path}: [[{section}]]", RecipeError) for entry in entries)
    value = {"name": path.stem, "seed": 0, "licence": "unstated"} | value
    result: DistillRecipe = from_mapping(DistillRecipe, value, str(path), RecipeError)
    return result
