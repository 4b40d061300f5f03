"""Distillation recipes: everything that decides a training run besides the data and the teacher, as TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fieldrun.errors import RecipeError, UnknownName
from fieldrun.student import from_mapping
from fieldrun.toml import read_toml

__all__ = [
    "CompressorRecipe",
    "CorpusRecipe",
    "DistillRecipe",
    "StudentRecipe",
    "TaskRecipe",
    "TeacherRecipe",
    "TrainingRecipe",
    "load_recipe",
    "recipe_names",
]

SCHEMA = 1
_RECIPES = Path(__file__).parent / "recipes"


def _positive(what: str, value: object, *, whole: bool = True) -> None:
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not value > 0:
        raise RecipeError(f"{what} must be a positive {'integer' if whole else 'number'}, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRecipe:
    """How the raw field is read: `layers` is a count (spread evenly) or a list of hidden-state indices."""

    layers: int | tuple[int, ...] = 7
    max_tokens: int = 128
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        if isinstance(self.layers, int):
            _positive("teacher.layers", self.layers)
        _positive("teacher.max_tokens", self.max_tokens)
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise RecipeError(f"teacher.dtype must be auto, float32 or bfloat16, not {self.dtype!r}")


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
        for name in ("steps", "batch", "rows_per_task"):
            _positive(f"compressor.{name}", getattr(self, name))
        _positive("compressor.learning_rate", self.learning_rate, whole=False)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecipe:
    """The student's training: the weights of its losses (field regression, the teacher heads' soft labels, labels,
    similarity geometry), how much soft labels of `other_tasks` count on a text, and `held_out`, the share of every
    train file that is kept for choosing and calibrating.
    """

    epochs: int = 8
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
        for name in ("epochs", "batch", "max_tokens", "checkpoint_steps"):
            _positive(f"training.{name}", getattr(self, name))
        _positive("training.learning_rate", self.learning_rate, whole=False)
        if not 0 < self.held_out < 0.5:
            raise RecipeError(f"training.held_out must be within 0..0.5, not {self.held_out!r}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise RecipeError(f"training.dtype must be auto, float32 or bfloat16, not {self.dtype!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecipe:
    """One task: a folder of the data with `train` files, and a `report` file that is only ever reported on."""

    name: str
    train: tuple[str, ...] = ("train.tsv",)
    report: str | None = None
    licence: str = "unstated"

    def __post_init__(self) -> None:
        if isinstance(self.train, str):
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
        object.__setattr__(self, "tasks", tuple(self.tasks))
        _positive(f"corpus {self.file!r}: rows", self.rows)


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
