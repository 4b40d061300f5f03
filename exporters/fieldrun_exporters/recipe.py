"""Recipes: how to export for one target, as TOML files.

A shipped recipe is named by its file (`recipes/<name>.toml`), your own by its path. An unknown key is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fieldrun.errors import RecipeError, UnknownName
from fieldrun.formats.integrity import from_mapping
from fieldrun.toml import read_toml

from .precision import Precision

__all__ = [
    "COMPONENTS",
    "LEAST_TEXTS",
    "SITES",
    "Buckets",
    "Calibration",
    "LowRank",
    "Parity",
    "Prune",
    "Recipe",
    "Recover",
    "Tensorrt",
    "load_recipe",
    "recipe_names",
]

SCHEMA = 1
_RECIPES = Path(__file__).parent / "recipes"
_OF_PRECISION = ("int8", "fp16", "palettize")
_ORDER = {"prune-vocabulary": 0, "fold": 1, "lowrank": 2, **dict.fromkeys(_OF_PRECISION, 3), "recover": 4}
SITES = ("width", "mixer", "hidden")
"""Where the pass `lowrank` removes features of a student."""
COMPONENTS = ("qk", "ov", "mlp")
"""What the pass `lowrank` makes smaller in an encoder (`fieldrun_exporters.encoder.lowrank`)."""
LEAST_TEXTS = 256
"""With fewer texts the worth of a feature cannot be told."""
_LEARNING_TEXTS = 4000
_MOST = {"batches": 4096, "lengths": 1 << 16}  # texts, tokens; a larger graph would fill the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """The fixed shapes: every batch size with every length (tokens, special tokens included)."""

    batches: tuple[int, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("batches", "lengths"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not value or any(type(n) is not int or n < 1 for n in value):
                raise RecipeError(f"buckets.{name} must be a list of positive integers, not {value!r}")
            if max(value) > _MOST[name]:
                raise RecipeError(f"buckets.{name} must be at most {_MOST[name]:,} each, not {_shown(max(value))}")
            object.__setattr__(self, name, tuple(sorted(set(value))))
        if self.batches[0] != 1:
            raise RecipeError("buckets.batches must contain 1, so that a single text does not pay for a batch")
        if self.lengths[0] < 3:
            raise RecipeError("buckets.lengths must be at least 3: two special tokens and one of the text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How activation scales are found: the `percentile` of absolute values over at most `texts` calibration texts."""

    percentile: float = 99.999
    texts: int = 512

    def __post_init__(self) -> None:
        if not isinstance(self.percentile, int | float) or not 90 <= self.percentile <= 100:
            raise RecipeError(f"calibration.percentile must be within 90..100, not {self.percentile!r}")
        _check_whole("calibration.texts", self.texts, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The parity limits, on real text against the NumPy reference.

    `min_cosine` and `max_abs` limit the fields, `min_top1` the share of texts and tasks with the same best label, and
    `max_bucket_gap` the largest difference between a text's fields in two buckets.
    """

    min_cosine: float
    max_abs: float
    min_top1: float = 0.9
    max_bucket_gap: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("min_cosine", "max_abs", "min_top1", "max_bucket_gap"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
                raise RecipeError(f"parity.{name} must be a positive, finite number, not {_shown(value)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """How many features are kept, all of them when None. A recipe is for a student or for an encoder.

    For each of a student's `SITES`: a number of features, or a share of their worth within 0..1, measured on at most
    `texts` calibration texts. For each of an encoder's `COMPONENTS`: a share of the inner size within 0..1, the same in
    every layer, measured on all texts of the recipe's `[calibration]`.
    """

    width: int | float | None = None
    mixer: int | float | None = None
    hidden: int | float | None = None
    qk: float | None = None
    ov: float | None = None
    mlp: float | None = None
    texts: int = _LEARNING_TEXTS

    def __post_init__(self) -> None:
        for name in SITES:
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if value is not None and not whole and not (isinstance(value, float) and 0 < value < 1):
                raise RecipeError(
                    f"lowrank.{name} must be a number of features, 1 or more, or a share of their worth within 0..1 "
                    f"such as 0.99; not {value!r}"
                )
        for name in COMPONENTS:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, float) and 0 < value < 1):
                raise RecipeError(
                    f"lowrank.{name} must be the share of the inner size that is kept, within 0..1 such as 0.8; not "
                    f"{value!r}"
                )
        _check_whole("lowrank.texts", self.texts, LEAST_TEXTS)
        of_encoder = [name for name in self.wanted if name in COMPONENTS]
        of_student = [name for name in self.wanted if name in SITES] + ["texts"] * (self.texts != _LEARNING_TEXTS)
        if of_encoder and of_student:
            raise RecipeError(
                f"lowrank.{of_student[0]} is for a student and lowrank.{of_encoder[0]} for an encoder, which uses "
                "calibration.texts; keep the keys of one"
            )

    @property
    def wanted(self) -> tuple[str, ...]:
        """The sites or components to make smaller."""
        return tuple(name for name in (*SITES, *COMPONENTS) if getattr(self, name) is not None)

    def to_dict(self) -> dict[str, int | float | None]:
        """Return the keys for a student, or for an encoder."""
        if set(self.wanted) <= set(SITES):
            return {name: getattr(self, name) for name in (*SITES, "texts")}
        return {name: getattr(self, name) for name in COMPONENTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Which word pieces are kept: those that the domain's texts use `min_count` times. `ngram_buckets` None: chosen."""

    min_count: int = 1
    ngram_buckets: int | None = None

    def __post_init__(self) -> None:
        _check_whole("prune.min_count", self.min_count, 1)
        if self.ngram_buckets is not None:
            _check_whole("prune.ngram_buckets", self.ngram_buckets, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recover:
    """How codebooks and layers are tuned: `steps` of `batch` texts, of at most `texts` of the calibration texts."""

    steps: int = 600
    batch: int = 64
    learning_rate: float = 0.1
    texts: int = 20000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 2), ("texts", 512), ("seed", 0)):
            _check_whole(f"recover.{name}", getattr(self, name), least)
        if not isinstance(self.learning_rate, int | float) or not 0 < self.learning_rate <= 100:
            raise RecipeError(f"recover.learning_rate must be within 0..100, not {self.learning_rate!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensorrt:
    """Graphs in TensorRT's spelling for every bucket, beside the others.

    `golden_tolerance` is how far a GPU may be from the golden fields and scores; half of it is allowed for the same
    graphs on a CPU.
    """

    golden_tolerance: float

    def __post_init__(self) -> None:
        if not isinstance(self.golden_tolerance, int | float) or not 0 < self.golden_tolerance < 1:
            raise RecipeError(f"tensorrt.golden_tolerance must be within 0..1, not {self.golden_tolerance!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to export for one target."""

    name: str
    passes: tuple[str, ...]
    precision: Precision
    buckets: Buckets
    calibration: Calibration
    parity: Parity
    recover: Recover
    lowrank: LowRank
    prune: Prune
    tensorrt: Tensorrt | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise RecipeError(f"name must be a string, not {self.name!r}")
        if not isinstance(self.passes, list | tuple) or not all(isinstance(p, str) for p in self.passes):
            raise RecipeError(f"passes must be a list of names, not {self.passes!r}")
        object.__setattr__(self, "passes", tuple(self.passes))
        unknown = [p for p in self.passes if p not in _ORDER]
        if unknown:
            raise RecipeError(f"unknown pass {unknown[0]!r}; known: {', '.join(_ORDER)}")
        order = [_ORDER[name] for name in self.passes]
        if "fold" not in self.passes or order != sorted(order) or len(set(self.passes)) < len(order):
            raise RecipeError(
                f"passes must be distinct, contain 'fold', and be in the order {', '.join(_ORDER)}, in which "
                f"{', '.join(_OF_PRECISION)} may change places; not {', '.join(self.passes) or 'empty'}"
            )
        if self.prune != Prune() and "prune-vocabulary" not in self.passes:
            raise RecipeError("[prune] and passes conflict: list the pass 'prune-vocabulary', or leave [prune] out")
        wanted = self.precision.wants(self.precision.rules)
        if "recover" in self.passes and not {"lowrank", "palettize"} & set(self.passes):
            raise RecipeError(
                "the pass 'recover' tunes codebooks and the layers that 'lowrank' made smaller: list 'palettize' or "
                "'lowrank' before it, or leave it out"
            )
        if ("lowrank" in self.passes) != bool(self.lowrank.wanted):
            raise RecipeError(
                "[lowrank] and passes conflict: list the pass 'lowrank' exactly when [lowrank] says how many features "
                "width, mixer or hidden keep (of an encoder qk, ov or mlp)"
            )
        for name in _OF_PRECISION:
            if (name in wanted) != (name in self.passes):
                raise RecipeError(
                    f"precision and passes conflict: list the pass {name!r} exactly when a part's precision needs it"
                )
        if self.tensorrt is not None and "palettize" in self.passes:
            raise RecipeError(
                "[tensorrt] and palettes conflict: TensorRT has no layer for palettes; use fp32, fp16, int8 or "
                "int8-weights for every part"
            )

    def fitting(self, longest: int) -> tuple[Recipe, tuple[str, ...]]:
        """Return the recipe for an imported model that cuts texts at `longest` tokens, and a warning if that matters.

        No bucket is longer: one of `longest` tokens takes the place of those that would be, so that a text is cut where
        the original cuts it.
        """
        lengths = self.buckets.lengths
        if lengths[-1] < longest:
            return self, (
                f"texts are cut at {lengths[-1]} tokens, the longest bucket; the original cuts them at {longest}: to "
                f"do so too, copy the recipe and add {longest} to buckets.lengths",
            )
        if lengths[-1] == longest:
            return self, ()
        kept = (*(n for n in lengths if n < longest), longest)
        return replace(self, buckets=replace(self.buckets, lengths=kept)), (
            f"the original cuts texts at {longest} tokens, so the longest bucket has {longest} and not {lengths[-1]}",
        )

    @property
    def prunes(self) -> bool:
        """Whether the checkpoint's vocabulary is pruned first."""
        return self.passes[:1] == ("prune-vocabulary",)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON."""
        sections = {name: asdict(getattr(self, name)) for name in ("buckets", "calibration", "parity", "recover")}
        if self.lowrank.wanted:
            sections["lowrank"] = self.lowrank.to_dict()
        if self.prunes:
            sections["prune"] = asdict(self.prune)
        if self.tensorrt is not None:
            sections["tensorrt"] = asdict(self.tensorrt)
        return {"name": self.name, "passes": self.passes, "precision": dict(self.precision.rules), **sections}


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RecipeError(f"{name} must be an integer of at least {least}, not {_shown(value)}")


def _shown(value: object) -> str:
    """Return `value` for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:30]}... ({len(text)} characters)"


_SECTIONS: Mapping[str, type] = {
    "buckets": Buckets,
    "calibration": Calibration,
    "parity": Parity,
    "recover": Recover,
    "lowrank": LowRank,
    "prune": Prune,
    "tensorrt": Tensorrt,
}


def recipe_names() -> tuple[str, ...]:
    """Return the names of the shipped recipes."""
    return tuple(sorted(path.stem for path in _RECIPES.glob("*.toml")))


def load_recipe(recipe: str | Path) -> Recipe:
    """Read a shipped recipe by name, or the recipe file at a path.

    Raises:
        UnknownName: neither a shipped name nor an existing `.toml` file.
        RecipeError: not TOML, an unknown or missing key, or an invalid value.
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
    rules = value.get("precision", {})
    if not isinstance(rules, Mapping):
        raise RecipeError(f"{path}: [precision] must be an object, not {type(rules).__name__}")
    value["precision"] = Precision(rules)
    for section, cls in _SECTIONS.items():
        if section != "tensorrt" or section in value:
            value[section] = from_mapping(cls, value.get(section, {}), f"{path}: [{section}]", RecipeError)
    value.setdefault("name", path.stem)
    result: Recipe = from_mapping(Recipe, value, str(path), RecipeError)
    return result
