"""Subjects with planted behaviour, named `python:tests.benchmarks.planted:CLASS`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fieldrun.errors import EngineError
from fieldrun_benchmarks.harness.subject import SubjectSpec


class Counting:
    """Answers with the number of characters; its task is to tell long texts from short ones."""

    def __init__(self, spec: SubjectSpec) -> None:
        self.spec = spec

    def run(self, texts: list[str]) -> object:
        return [sum(map(ord, text)) for text in texts]

    def stages(self, text: str) -> Mapping[str, Callable[[], object]]:
        return {"tokenize": text.split, "engine": lambda: sum(map(ord, text))}

    def tokens(self, texts: Sequence[str]) -> list[int] | None:
        return [len(text.split()) for text in texts]

    def tasks(self) -> Mapping[str, Sequence[str]]:
        return {"length": ("long", "short")}

    def predict(self, texts: list[str], task: str) -> list[str]:
        return ["long" if len(text) > 20 else "short" for text in texts]

    def about(self) -> dict[str, Any]:
        return {
            "artifact": {"name": "counting", "recipe": "<script>alert(1)</script>", "bytes": 1000, "sha256": {}},
            "engine": "none",
            "engine_reason": "planted",
        }

    def close(self) -> None:
        pass


def peer_of(folder: Path, task: str) -> Callable[[Sequence[str]], list[str]]:
    """What `peer.json` of a planted peer names."""
    labels = json.loads((folder / f"head-{task}.json").read_text("utf-8"))["labels"]
    return lambda texts: [labels["good" in text] for text in texts]


class Printing(Counting):
    def run(self, texts: list[str]) -> object:
        print("a library that prints")
        return super().run(texts)


class Forgetful(Counting):
    """Answers the first text only, and has no program."""

    @staticmethod
    def program(spec: SubjectSpec) -> str:
        raise ValueError(f"no program for {spec.place}")

    def predict(self, texts: list[str], task: str) -> list[str]:
        return super().predict(texts[:1], task)


class Refusing(Counting):
    def __init__(self, spec: SubjectSpec) -> None:
        raise EngineError("this machine lacks what it needs")


class Crashing(Counting):
    def run(self, texts: list[str]) -> object:
        print("out of luck", file=sys.stderr, flush=True)
        os._exit(7)


class Steady(Counting):
    """Takes 200 us a text, by the clock; `Slowed` a fifth more."""

    nanos = 200_000

    def run(self, texts: list[str]) -> object:
        end = time.perf_counter_ns() + self.nanos * len(texts)
        while time.perf_counter_ns() < end:
            pass
        return None


class Slowed(Steady):
    nanos = 240_000


class Hanging(Counting):
    def run(self, texts: list[str]) -> object:
        time.sleep(3600)
        return None
