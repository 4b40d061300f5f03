"""What a request may ask for, and its body, checked: which texts, which task, what to do with a bad text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from fieldrun.errors import FieldrunError, InputTextError, TextTooLong, UsageError
from fieldrun.evaluation.rows import check_texts, split_pairs

__all__ = ["KEYS", "Limits", "Question", "Refused", "error_object", "status_of"]

_TEXTS = ("text", "texts", "on_error")
_PAIRS = ("pair", "pairs", "task")
KEYS: Mapping[str, tuple[str, ...]] = {
    "/predict": (*_TEXTS, *_PAIRS, "top_k", "threshold"),
    "/scores": (*_TEXTS, *_PAIRS),
    "/field": (*_TEXTS, "dim"),
}
"""The keys that each endpoint takes."""

_LONGEST_NAME = 200  # characters of a name that an error repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one request, and of all requests together.

    `body_bytes` of a request body, `texts` (or pairs) in it, `characters` of one text, and `seconds` from its first
    byte to its answer. `requests` is how many may be read or answered at once; the next one is refused with status 503.
    Together they bound the memory: at most `requests * body_bytes` of bodies wait.

    Raises:
        UsageError: a limit is not positive.
    """

    body_bytes: int = 1_000_000
    texts: int = 1024
    characters: int = 20_000
    seconds: float = 10.0
    requests: int = 128

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = int | float if field.name == "seconds" else int
            if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise UsageError(f"the limit {field.name} must be a positive number, not {value!r}")


class Refused(Exception):
    """A request that is answered with an error: the HTTP status, the error, and the text it is about, if any."""

    def __init__(
        self, status: int, error: FieldrunError, *, index: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(str(error))
        self.status, self.error, self.index, self.headers = status, error, index, headers or {}


def status_of(error: FieldrunError) -> int:
    """Return the HTTP status of an error: 400 where the request is at fault, else 500."""
    return 400 if isinstance(error, UsageError | TextTooLong) else 500


def error_object(error: FieldrunError, index: int | None = None) -> dict[str, Any]:
    """Return an error as JSON: the name of its class, its message, and the exit code that the command line has for it.

    `index` is the position of the text that it is about.
    """
    value = {"type": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
    return value if index is None else value | {"index": index}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request as its body states it. `items` are texts or, if `paired`, pairs of texts, not checked yet."""

    items: list[Any]
    paired: bool
    task: str | None
    top_k: int
    threshold: float
    dim: int | None
    report: bool

    @classmethod
    def read(cls, endpoint: str, body: bytes, limits: Limits) -> Question:
        """Read the body of a request to `endpoint`.

        Raises:
            Refused: not JSON, an unknown key, a value of the wrong type, or more texts than `limits` allow.
        """
        try:
            value = json.loads(body.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise _wrong(f"the body is not valid JSON in UTF-8 ({error})") from error
        if not isinstance(value, dict):
            raise _wrong('the body must be a JSON object such as {"text": "a film to remember"}')
        unknown = sorted(set(value) - set(KEYS[endpoint]))
        if unknown:
            listed = ", ".join(KEYS[endpoint])
            raise _wrong(f"unknown key {unknown[0][:_LONGEST_NAME]!r}; {endpoint} takes: {listed}")
        given = [key for key in ("text", "texts", "pair", "pairs") if value.get(key) is not None]
        if len(given) != 1:
            allowed = " or ".join(key for key in ("text", "texts", "pair", "pairs") if key in KEYS[endpoint])
            raise _wrong(f"give exactly one of {allowed}")
        items = value[given[0]] if given[0].endswith("s") else [value[given[0]]]
        if not isinstance(items, list) or not items:
            raise _wrong(f"{given[0]} must be a list with at least one item")
        if len(items) > limits.texts:
            message = f"{len(items):,} texts; one request takes at most {limits.texts:,}: send several"
            raise Refused(413, UsageError(message))
        return cls(
            items=items,
            paired=given[0].startswith("pair"),
            task=_take(value, "task", None, "a string", lambda x: isinstance(x, str) and len(x) <= _LONGEST_NAME),
            top_k=_take(value, "top_k", 1, "a positive integer", lambda x: type(x) is int and x >= 1),
            threshold=_take(value, "threshold", 0.0, "a number from 0 to 1", _is_share),
            dim=_take(value, "dim", None, "an integer", lambda x: type(x) is int),
            report=_take(value, "on_error", "fail", "'fail' or 'report'", ("fail", "report").__contains__) == "report",
        )

    def check(self, position: int, limits: Limits) -> None:
        """Check the item at `position`.

        Raises:
            InputTextError: it is not a text, or a pair of texts, that can be encoded.
            TextTooLong: it has more characters than `limits` allow.
        """
        item = self.items[position]
        try:
            texts = [part[0] for part in split_pairs([item])] if self.paired else check_texts([item])
        except InputTextError as error:
            raise InputTextError(str(error).replace(" 0 ", f" {position} ", 1)) from error
        longest = max(map(len, texts))
        if longest > limits.characters:
            raise TextTooLong(
                f"text {position} has {longest:,} characters; this service takes at most {limits.characters:,}"
            )


def _take(value: Mapping[str, Any], key: str, default: Any, what: str, valid: Callable[[Any], bool]) -> Any:
    """Return the value of `key`, `default` where it is missing or null."""
    found = value.get(key)
    if found is None:
        return default
    if not valid(found):
        raise _wrong(f"{key} must be {what}")
    return found


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _wrong(message: str) -> Refused:
    return Refused(400, UsageError(message))
