"""What a section of a recipe is made of: fields with a check, and messages that name the field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, field, fields
from pathlib import PurePosixPath
from typing import Any, ClassVar

from fieldrun.errors import RecipeError

__all__ = [
    "Section",
    "are_inside",
    "are_whole",
    "dtype",
    "is_inside",
    "is_whole",
    "names",
    "number",
    "rate",
    "said",
    "switch",
    "weight",
    "where",
    "whole",
]


def where(default: Any, valid: Callable[[Any], bool], wanted: str) -> Any:
    """Return a dataclass field that `Section` checks; the message says "must be `wanted`"."""
    return field(default=default, metadata={"valid": valid, "wanted": wanted})


def is_whole(value: Any, least: int) -> bool:
    """Say whether `value` is an integer of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def are_whole(value: Any, least: int) -> bool:
    """Say whether `value` is a list of integers of at least `least`."""
    return isinstance(value, list | tuple) and all(is_whole(each, least) for each in value)


def whole(default: Any, least: int = 1) -> Any:
    """Return a field for an integer of at least `least`."""
    return where(default, lambda value: is_whole(value, least), f"an integer of at least {least}")


def number(default: float, low: float, high: float) -> Any:
    """Return a field for a number within `low`..`high`."""

    def valid(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    return where(default, valid, f"a number within {low:g}..{high:g}")


def weight(default: float) -> Any:
    """Return a field for the weight of a loss."""
    return number(default, 0, 1e6)


def rate(default: float) -> Any:
    """Return a field for a learning rate."""
    return number(default, 1e-9, 1)


def dtype() -> Any:
    """Return a field for the arithmetic of a network."""
    return where("auto", lambda value: value in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16")


def switch() -> Any:
    """Return a field that is false unless it is set."""
    return where(False, lambda value: isinstance(value, bool), "true or false")


def said() -> Any:
    """Return a field for a text that must be given."""
    return where(MISSING, lambda value: isinstance(value, str) and bool(value.strip()), "a text that is not blank")


def names(default: tuple[str, ...], wanted: str) -> Any:
    """Return a field for a list of strings, which may be empty only where `default` is."""

    def valid(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)

    return where(default, lambda value: valid(value) and bool(value or not default), wanted)


def is_inside(value: Any) -> bool:
    """Say whether `value` is the path or glob of files inside the data folder."""
    parts = PurePosixPath(value).parts if isinstance(value, str) else ()
    return bool(parts) and not parts[0].startswith("/") and ".." not in parts


def are_inside(value: Any) -> bool:
    """Say whether `value` is a list of paths or globs inside the data folder."""
    return isinstance(value, list | tuple) and bool(value) and all(map(is_inside, value))


class Section:
    """A part of a recipe. Fields that were made with a check are checked, and lists become tuples."""

    __slots__ = ()
    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # every section is a dataclass
            value = getattr(self, each.name)
            if "valid" in each.metadata and value is not each.default and not each.metadata["valid"](value):
                name = f"{self._title()}{each.name}"
                raise RecipeError(f"{name} must be {each.metadata['wanted']}, not {value!r}")
            if isinstance(value, list):
                object.__setattr__(self, each.name, tuple(value))

    def _title(self) -> str:
        return f"{self.section}." if self.section else ""
