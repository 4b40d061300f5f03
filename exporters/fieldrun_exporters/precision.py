"""Precision: which part of a model is stored and computed in which type.

The parts of a student are the blocks of its table, `offset<k>` for every window offset (`offset-1`, `offset0`, ...) and
`ngrams`, and the dense layers `mixer`, `hidden`, `output` (the field and all single heads) and `pairs`. The parts of an
imported encoder are the dense maps `qkv`, `attention`, `up` and `down` of all its layers.

A rule for a part comes before one for its kind, `tables` or `dense`, and that before `default`. `pairs` follows
`output` unless it has a rule of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fieldrun.errors import RecipeError

__all__ = ["MAPS", "Palette", "Precision", "Split", "palettes"]

MAPS = ("qkv", "attention", "up", "down")
"""The dense maps of an encoder's layer, as they are deployed."""

_TABLES = ("fp32", "fp16", "int8", "int4")
_DENSE = ("fp32", "fp16", "int8", "int8-weights", "int4")
_KINDS = {"tables": _TABLES, "dense": _DENSE}
_OF_IMPORTED = {"tables": ("fp32", "int8"), "dense": ("fp32", "int8", "int8-weights")}
_LAYERS = ("mixer", "hidden", "output", "pairs")
_BLOCK = re.compile(r"offset(0|-?[1-9][0-9]?)|ngrams")
_PALETTE = re.compile(r"palette([0-9]+)(?:x([0-9]+))?")
_SPLIT = re.compile(r"([^:+]+):([1-9][0-9]?)%\+([^:+]+)")
_DIMS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """A codebook of `entries` for every `dims` neighbouring numbers; `linear`: evenly spaced ones."""

    entries: int
    dims: int = 1
    linear: bool = False

    @classmethod
    def of(cls, value: str) -> Palette | None:
        """Return the palette that a precision names, None if it has no codebook; `RecipeError` for a wrong one."""
        if value == "int4":
            return cls(entries=16, linear=True)
        found = _PALETTE.fullmatch(value)
        if found is None:
            return None
        entries, dims = int(found[1]), int(found[2] or 1)
        if not 2 <= entries <= 256 or dims not in _DIMS:
            raise RecipeError(
                f"{value!r}: a palette has 2 to 256 entries of {', '.join(map(str, _DIMS))} numbers, as in palette16 "
                "or palette256x4"
            )
        return cls(entries=entries, dims=dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Two palettes in one block of a table: the `percent` of its rows that texts use most take `often`."""

    percent: int
    often: Palette
    rarely: Palette

    @classmethod
    def of(cls, value: str) -> Split | None:
        """Return the split that a precision names, None if it is not one; `RecipeError` for a wrong one."""
        if "+" not in value:
            return None
        found = _SPLIT.fullmatch(value)
        both = [Palette.of(found[1]), Palette.of(found[3])] if found else []
        if found is None or both[0] is None or both[1] is None:
            raise RecipeError(
                f"{value!r}: a split is two palettes and the share of rows, those used most, of the first, as in "
                "palette64:20%+palette256x8"
            )
        return cls(percent=int(found[2]), often=both[0], rarely=both[1])


def palettes(value: str) -> tuple[Palette, ...]:
    """Return the palettes that a precision names: none, one, or the two of a split."""
    split = Split.of(value)
    if split is not None:
        return split.often, split.rarely
    whole = Palette.of(value)
    return () if whole is None else (whole,)


@dataclass(frozen=True, slots=True)
class Precision:
    """The rules of a recipe's `[precision]`, checked: `Precision({"tables": "int8", "offset0": "palette16"})`."""

    rules: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", dict(self.rules))
        for name, value in self.rules.items():
            if name not in ("default", *_KINDS, *_LAYERS, *MAPS) and not _BLOCK.fullmatch(name):
                known = ", ".join(("default", *_KINDS, *_LAYERS))
                raise RecipeError(f"precision has the unknown part {name!r}; known: {known}, offset<k>, ngrams")
            if not isinstance(value, str):
                raise RecipeError(f"precision.{name} must be a string, not {value!r}")
            _check(name, value)

    def of(self, part: str) -> str:
        """Return the type of `part`, a block of the table or a dense layer."""
        kind = "dense" if part in (*_LAYERS, *MAPS) else "tables"
        names = (part, *(["output"] if part == "pairs" else []), kind, "default")
        return next((self.rules[name] for name in names if name in self.rules), "fp32")

    def check_parts(self, blocks: Iterable[str]) -> None:
        """Check the rules against a student's blocks. A rule for a layer fits every student: see `idle`.

        Raises:
            RecipeError: a rule is for a block that the student does not have, or the types of its blocks cannot share
                a table.
        """
        blocks = tuple(blocks)
        missing = [n for n in self.rules if n not in ("default", *_KINDS, *_LAYERS, *blocks)]
        if missing:
            raise RecipeError(f"precision.{missing[0]}: the student has no such block; it has {', '.join(blocks)}")
        types = {block: self.of(block) for block in blocks}
        floats = {value for value in types.values() if value in ("fp32", "fp16")}
        if floats and len(set(types.values())) > 1:
            block = next(b for b in blocks if types[b] in floats)
            other = next(b for b in blocks if types[b] != types[block])
            raise RecipeError(
                f"precision.{block} is {types[block]} and precision.{other} {types[other]}: "
                f"either all blocks of a table are {types[block]}, or none is"
            )

    def check_imported(self, what: str, parts: tuple[str, ...], *, palette: bool) -> None:
        """Check the rules against `what`, an imported model: its dense `parts`, and whether it may have palettes.

        Raises:
            RecipeError: names the part or the type.
        """
        for name in self.rules:
            if name not in ("default", *_OF_IMPORTED, *parts):
                raise RecipeError(
                    f"precision.{name}: {what} has no such part; it has {', '.join((*_OF_IMPORTED, *parts))}. "
                    "Use --recipe encoder-int8 or one made from it"
                )
        for part in ("table", *(parts or MAPS)):
            value, known = self.of(part), _OF_IMPORTED["tables" if part == "table" else "dense"]
            if value not in known and not (palette and Palette.of(value)):
                raise RecipeError(
                    f"precision: {part if parts or part == 'table' else 'dense'} of {what} is one of "
                    f"{', '.join(known)}{' or palette<K>' * palette}, not {value!r}"
                )

    def idle(self, layers: Iterable[str]) -> tuple[str, ...]:
        """Return the dense layers that have a rule and are not among a student's `layers`.

        That is no error: one recipe fits students with and without a mixer, a hidden layer or pair tasks.
        """
        return tuple(name for name in _LAYERS if name in self.rules and name not in set(layers))

    def wants(self, parts: Iterable[str]) -> set[str]:
        """Return the passes that these parts need."""
        values = [self.of(part) for part in parts]
        needed = {"int8"} if any(v in ("int8", "int8-weights") for v in values) else set()
        needed |= {"fp16"} if "fp16" in values else set()
        return needed | ({"palettize"} if any(palettes(v) for v in values) else set())


def _check(name: str, value: str) -> None:
    """Refuse a value that `name`, a part, a kind or the default, cannot have."""
    if Split.of(value) is not None:
        if name in _LAYERS or name in ("default", "dense"):
            raise RecipeError(f"precision.{name}: only blocks of the table have rows that are used more than others")
        return
    if Palette.of(value) is not None:
        return
    kind = "dense" if name in (*_LAYERS, *MAPS) else name if name in _KINDS else "tables"
    known = tuple(v for v in _TABLES if v in _DENSE) if name == "default" else _KINDS[kind]
    if value not in known:
        raise RecipeError(f"precision.{name} must be one of {', '.join(known)} or palette<K>, not {value!r}")
