"""Distillation recipes: everything that decides a training run besides the data and the teacher, as TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from fieldrun.errors import CheckpointError, RecipeError, UnknownName
from fieldrun.formats.integrity import from_mapping
from fieldrun.student.config import StudentConfig
from fieldrun.toml import read_toml

from . import checks

__all__ = [
    "CompressorRecipe",
    "CorpusRecipe",
    "DistillRecipe",
    "FinetuneRecipe",
    "PoolRecipe",
    "SourceRecipe",
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


def is_task_name(name: object) -> bool:
    """Say whether a task, and so its head, may be called `name`: letters, digits, `-` and `_`."""
    return isinstance(name, str) and bool(name) and all(c.isalnum() or c in "-_" for c in name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRecipe(checks.Section):
    """How the raw field is read: `layers` is a count (spread evenly; 1 is the last) or a list of hidden states."""

    section: ClassVar[str] = "teacher"
    layers: int | tuple[int, ...] = checks.where(
        7,
        lambda value: checks.is_whole(value, 1) or checks.are_whole(value, 0),
        "an integer of at least 1, or a list of indices",
    )
    max_tokens: int = checks.whole(128, _LEAST_TOKENS)
    dtype: str = checks.dtype()


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRecipe(checks.Section):
    """Fine-tuning of the teacher on all tasks at once, before its field is read.

    `frozen_layers` of its layers, from the embeddings on, keep their weights. A batch is of one task and has at most
    `tokens` tokens, padding included, and `rows` rows.
    """

    section: ClassVar[str] = "finetune"
    learning_rate: float = checks.rate(5e-5)
    head_learning_rate: float = checks.rate(2e-3)
    weight_decay: float = checks.number(0.01, 0, 1)
    rows: int = checks.whole(64)
    tokens: int = checks.whole(800)
    max_tokens: int = checks.whole(64, _LEAST_TOKENS)
    frozen_layers: int = checks.whole(3, 0)
    dtype: str = checks.dtype()
    checkpoint_steps: int = checks.whole(500)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorRecipe(checks.Section):
    """The AN1 compressor: steps of Adam on reconstruction + task + geometry, and the weights of the losses.

    Geometry and `similarity` (of graded pairs) count for the whole field and for its first `prefixes` numbers, so that
    a prefix is a smaller field (Matryoshka representation learning, Kusupati et al. 2022).
    """

    section: ClassVar[str] = "compressor"
    steps: int = checks.whole(1500, 20)  # a tenth of them warms up
    batch: int = checks.whole(512)
    rows_per_task: int = checks.whole(128)
    learning_rate: float = checks.rate(2e-3)
    dropout: float = checks.number(0.1, 0, 0.9)
    reconstruction: float = checks.weight(1.0)
    task: float = checks.weight(0.3)
    geometry: float = checks.weight(2.0)
    similarity: float = checks.weight(1.0)
    prefixes: tuple[int, ...] = checks.where(
        (64, 128), lambda value: checks.are_whole(value, 1), "a list of positive integers"
    )


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
        """Return the student's shape. `RecipeError` if it is not valid."""
        try:
            return StudentConfig(vocab_size=vocab_size, max_tokens=max_tokens, **asdict(self))
        except CheckpointError as error:
            raise RecipeError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecipe(checks.Section):
    """The student's training: `epochs` over the texts, more if they come to fewer than `min_steps` steps.

    The weights of the losses are `regression` (of the field), `distill` (the teacher heads' soft labels), `labels` and
    `geometry` (in-batch similarities). `other_tasks` is the weight of the soft labels of other tasks on a text, `pairs`
    that of the mean loss of the `pair_rows` rows of pair and similarity tasks in every batch. `held_out` is the share
    of every train file that is kept for choosing and calibrating.
    """

    section: ClassVar[str] = "training"
    epochs: int = checks.whole(8)
    min_steps: int = checks.whole(1)
    batch: int = checks.whole(512)
    learning_rate: float = checks.rate(2e-3)
    weight_decay: float = checks.number(0.01, 0, 1)
    dropout: float = checks.number(0.2, 0, 0.9)
    max_tokens: int = checks.whole(96, _LEAST_TOKENS)
    regression: float = checks.weight(0.5)
    distill: float = checks.weight(2.0)
    labels: float = checks.weight(0.25)
    other_tasks: float = checks.weight(0.2)
    geometry: float = checks.weight(2.0)
    pairs: float = checks.weight(1.0)
    pair_rows: int = checks.whole(32, 0)
    held_out: float = checks.number(0.05, 0.001, 0.5)
    dtype: str = checks.dtype()
    checkpoint_steps: int = checks.whole(400)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecipe(checks.Section):
    """One task: a folder of the data with `train` files, and a `report` file that is only ever reported on.

    Args:
        name: the folder.
        train: its files to learn from.
        report: its file to report on.
        repeat: how often an epoch of the student shows its train texts. Of a pair or similarity task: how much more
            often one of its pairs is drawn than a pair of another task.
        phrases: the rows are phrases of one another. Then only whole sentences are held out, and their phrases are left
            out.
        similarity: the highest grade, for a task whose labels grade the similarity of pairs from 0 on.
        augment: how many altered copies of every train text the teacher labels as more transfer text.
        tune: how often fine-tuning the teacher shows the train rows.
        tune_rows: how many of them it shows at most.
        licence: of the data, for the model card.
    """

    name: str
    train: tuple[str, ...] = checks.names(("train.tsv",), "a list of file names")
    report: str | None = None
    repeat: int = checks.whole(1)
    phrases: bool = checks.switch()
    similarity: float = checks.weight(0)
    augment: int = checks.whole(0, 0)
    tune: int = checks.whole(1, 0)
    tune_rows: int | None = checks.whole(None)
    licence: str = "unstated"

    def __post_init__(self) -> None:
        if not is_task_name(self.name):
            raise RecipeError(f"a task cannot be named {self.name!r}; use letters, digits, '-' and '_'")
        checks.Section.__post_init__(self)

    def _title(self) -> str:
        return f"task {self.name!r}: "


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusRecipe(checks.Section):
    """Unlabelled text, one per line: `rows` are drawn from `file`; the soft labels of `tasks` count fully on it.

    Lines of more than `max_chars` characters are left out. With `treebank`, every second line has its negations apart
    ("does n't"), as the Penn Treebank and with it SST-2 write them.
    """

    file: str
    rows: int = checks.whole(MISSING)
    max_chars: int = checks.whole(1000)
    treebank: bool = checks.switch()
    tasks: tuple[str, ...] = checks.names((), "a list of task names")
    licence: str = "unstated"

    def _title(self) -> str:
        return f"corpus {self.file!r}: "


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecipe(checks.Section):
    """A file of free texts: a text a line (`.txt`, `.txt.xz`), or a table with the column `text` or a pair of columns.

    Args:
        file: its path in the data folder.
        licence: of its texts.
        attribution: whom the licence asks to name, for the model card.
        weight: how much sooner its texts come than those of a source of weight 1.
    """

    file: str = checks.where(MISSING, checks.is_inside, "the path of a file inside the data folder")
    licence: str = checks.said()
    attribution: str = checks.said()
    weight: float = checks.number(1, 1e-6, 1e6)

    def _title(self) -> str:
        return f"source {self.file!r}: "


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRecipe(checks.Section):
    """The open pool: its `sources`, and globs of the files of the data folder whose texts must never get in."""

    section: ClassVar[str] = "pool"
    sources: tuple[SourceRecipe, ...] = checks.where(MISSING, bool, "a [[pool.sources]] for each file of free texts")
    held_back: tuple[str, ...] = checks.where(
        MISSING, checks.are_inside, "a list of globs of files inside the data folder"
    )

    def __post_init__(self) -> None:
        checks.Section.__post_init__(self)
        _refuse_twice("source", [source.file for source in self.sources])


def _refuse_twice(what: str, names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"the recipe lists the {what} {twice!r} twice; remove one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRecipe(checks.Section):
    """A whole training run. Without `tasks`, every folder of the data that has a `train.tsv` is a task.

    Without `finetune` the teacher keeps its weights. `pool` says what free texts there are.
    """

    name: str
    seed: int = checks.where(
        0, lambda value: checks.is_whole(value, 0) and value < 2**31, "an integer within 0..2147483647"
    )
    licence: str = "unstated"
    teacher: TeacherRecipe
    finetune: FinetuneRecipe | None = None
    pool: PoolRecipe | None = None
    compressor: CompressorRecipe
    student: StudentRecipe
    training: TrainingRecipe
    tasks: tuple[TaskRecipe, ...]
    corpus: tuple[CorpusRecipe, ...]

    def __post_init__(self) -> None:
        checks.Section.__post_init__(self)
        if not isinstance(self.name, str) or not isinstance(self.licence, str):
            raise RecipeError("name and licence must be strings")
        _refuse_twice("task", [task.name for task in self.tasks])
        _refuse_twice("corpus", [corpus.file for corpus in self.corpus])

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON."""
        return asdict(self)


def recipe_names() -> tuple[str, ...]:
    """Return the names of the shipped recipes."""
    return tuple(sorted(path.stem for path in _RECIPES.glob("*.toml")))


def load_recipe(recipe: str | Path) -> DistillRecipe:
    """Read a shipped recipe by name, or the recipe file at a path.

    Raises:
        UnknownName: neither the name of a shipped recipe nor the path of a `.toml` file.
        RecipeError: not TOML, an unknown or missing key, or a value that is not valid.
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
    if "pool" in value:
        if isinstance(value["pool"], dict):
            value["pool"]["sources"] = _entries(value["pool"], "sources", SourceRecipe, f"{path}: [[pool.sources]]")
        value["pool"] = from_mapping(PoolRecipe, value["pool"], f"{path}: [pool]", RecipeError)
    for section, cls in (("tasks", TaskRecipe), ("corpus", CorpusRecipe)):
        value[section] = _entries(value, section, cls, f"{path}: [[{section}]]")
    result: DistillRecipe = from_mapping(DistillRecipe, {"name": path.stem, **value}, str(path), RecipeError)
    return result


def _entries(value: Mapping[str, Any], name: str, cls: type, what: str) -> tuple[Any, ...]:
    """Return the entries of an array of tables as `cls`; `RecipeError` if it is something else."""
    entries = value.get(name, [])
    if not isinstance(entries, list):
        raise RecipeError(f"{what.replace('[[', 'write [[')}, once per entry")
    return tuple(from_mapping(cls, entry, what, RecipeError) for entry in entries)
