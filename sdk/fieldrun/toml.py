"""Read TOML on every supported Python: with `tomllib` from 3.11 on, with the package `tomli` on 3.10."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .errors import MissingDependency, RecipeError

__all__ = ["parse_toml", "read_toml"]


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Parse TOML `text`. `RecipeError` names `source` and the line if the text is not valid TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise MissingDependency("tomli", "export") from error
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits is no TOMLDecodeError
        raise RecipeError(f"{source} is not valid TOML: {error}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Parse the TOML file at `path`. `RecipeError` if it is missing, not UTF-8 or not TOML."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"the recipe {path} does not exist; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    return parse_toml(text, str(path))
