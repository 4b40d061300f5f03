"""`make demo`: export the shipped checkpoint, verify it, label sentences, and show size, accuracy and speed."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click

import fieldrun
from fieldrun.errors import FieldrunError, ParityError
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.evaluation.evaluate import evaluate
from fieldrun_benchmarks.harness.timer import time_texts
from fieldrun_benchmarks.harness.workload import SAMPLES

__all__ = ["main"]

_SENTENCES: dict[str, list[Any]] = {
    "sst2": ["a gripping film that never lets go", "two hours i will not get back"],
    "trec": ["Who wrote the first symphony in C minor ?", "How far is the moon ?"],
    "banking77": ["My card was swallowed by the machine", "why was i charged twice for one coffee"],
    "clinc150": ["set a timer for nine minutes", "what is the exchange rate of yen to euro"],
    "ag_news": ["Shares slid after the chip maker cut its forecast", "The striker scored twice in extra time"],
    "tweeteval_offensive": ["@user thank you for the lovely photos", "@user you are a pathetic clown"],
    "mrpc": [("The company closed three plants in May .", "Three of the company 's plants were shut in May .")],
}


def main(output: Path) -> None:
    """Run the demonstration; the bundle is left at `output`.

    Raises:
        FieldrunError: a step failed.
    """
    click.echo("1. export the shipped checkpoint with the recipe cpu-small")
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    report = fieldrun.export("reference", output, recipe="cpu-small")
    cosine = min(bucket.min_cosine for bucket in report.parity)
    click.echo(
        f"   {output}: {report.bytes / 1e6:.1f} MB in {time.perf_counter() - start:.0f} s; {len(report.parity)} "
        f"buckets compared with the NumPy reference on up to {report.parity[-1].texts} texts, least cosine {cosine:.5f}"
    )

    click.echo("2. verify it: hashes, then golden texts replayed")
    for engine in ("onnxruntime", "numpy"):
        verified = fieldrun.verify(output, engine=engine)
        if not verified.passed:
            raise ParityError(f"golden fields differ by {verified.max_abs_field:.2g} with the engine {engine}")
        click.echo(f"   {engine}: {verified.texts} texts, largest difference {verified.max_abs_field:.1g}")

    with fieldrun.load(output) as model:
        click.echo(f"3. label sentences; engine {model.engine}, {model.engine_reason}")
        for task, rows in _SENTENCES.items():
            for row, (best,) in zip(rows, model.top_k(rows, task, k=1), strict=True):
                shown = row if isinstance(row, str) else " / ".join(row)
                click.echo(f"   {task:<20} {best.label:<22} {best.score:5.1%}  {shown}")
        click.echo("4. accuracy and speed on this machine")
        texts: list[str] = []
        for task in ("banking77", "clinc150"):
            sample = read_tsv(SAMPLES / f"{task}.tsv")
            texts += [str(text) for text in sample.texts]
            found = evaluate(model, sample, task)
            low, high = found.ci95
            click.echo(
                f"   accuracy {task:<10} {found.accuracy:.1%}  (95 % interval {low:.1%} to {high:.1%}, n = {found.n})"
            )
        _speed(model, texts)

    click.echo("try next:")
    click.echo('   .venv/bin/fieldrun run reference --task sst2 "your sentence here"')
    click.echo('   .venv/bin/fieldrun run reference --task all --json "one forward pass, every task"')
    click.echo("   .venv/bin/fieldrun info reference")


def _speed(model: fieldrun.FieldModel, texts: list[str]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    subjects = {
        "the tokenizer alone": lambda text: tokenizer.encode_batch_fast([text])[0].ids,
        "text in, label out": lambda text: model.predict([text], "banking77"),
    }
    timed = time_texts(subjects, texts, repeats=2)
    alone, whole = (timed[name]["p50_us"] for name in subjects)
    tokens = sum(model.forward(texts).tokens) / len(texts)
    click.echo(
        f"   speed: text in to label out {whole:.0f} us (p50, one text at a time, one thread, {tokens:.0f} tokens); "
        f"the tokenizer alone {alone:.0f} us; {whole / alone:.1f} times"
    )


if __name__ == "__main__":
    try:
        main(Path("build") / "demo-bundle")
    except FieldrunError as failure:
        click.echo(f"demo: error: {' '.join(str(failure).split())}", err=True)
        sys.exit(failure.exit_code)
