"""The Rust tokenizer of a bundle alone, from text to token ids: the least that any subject with tokens costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from fieldrun.formats.bundle import Bundle

from ..harness.subject import Subject, SubjectSpec

__all__ = ["TokenizerSubject"]

_FILE = "tokenizer.json"
_PROGRAM = """
from tokenizers import Tokenizer
Tokenizer.from_file({path!r}).encode("a gripping film").ids
"""


class TokenizerSubject(Subject):
    """Text in, token ids out."""

    def __init__(self, spec: SubjectSpec) -> None:
        bundle = Bundle.load(spec.place)
        self._tokenizer = Tokenizer.from_str(str(bundle.contents[_FILE], "utf-8"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        entry = bundle.manifest.files[_FILE]
        self._artifact = {"name": _FILE, "bytes": entry.bytes, "sha256": {_FILE: entry.sha256}}

    @staticmethod
    def program(spec: SubjectSpec) -> str:
        """Return the program that gives the token ids of one text."""
        return _PROGRAM.format(path=str(Bundle.load(spec.place).path / _FILE))

    @staticmethod
    def packages(spec: SubjectSpec) -> tuple[str, ...]:
        """Return the package of the tokenizer."""
        del spec
        return ("tokenizers",)

    def run(self, texts: list[str]) -> object:
        """Return the token ids of each text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Return the number of tokens of each text."""
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def about(self) -> dict[str, Any]:
        """Return the tokenizer's file."""
        return {"artifact": self._artifact, "answers": "token ids"}
