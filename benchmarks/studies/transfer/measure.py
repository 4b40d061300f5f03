r"""Measure frozen vectors on texts and labels that nobody trained on: transfer, similarity, retrieval.

    python -m studies.transfer.measure --data DATA --gte FOLDER --minilm FOLDER --cache CACHE \
        -o benchmarks/records/transfer.json
    python -m studies.transfer.measure --data DATA --cache CACHE --subject fieldrun --bundle FOLDER -o RECORD

Nothing is chosen here: the sets under `transfer` and `retrieval` only judge, and so do the report files of the others.
Every subject gets the same probe, `fieldrun.fit_head`, on its own vectors, with the same draws of train rows. The peers
are made in CACHE, which keeps their vectors and the results of each set too: a run that was stopped goes on there.
The peers need `pip install 'fieldrun[peers]'`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

import fieldrun
from fieldrun.evaluation.copies import text_key
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.formats.bundle import Bundle
from fieldrun.heads.fit import fit_fields
from fieldrun.heads.head import head_logits
from fieldrun_benchmarks.harness.record import conditions, make_folder, write_record

from ..fit_heads.measure import draw
from ..paired import Hits, difference, published, scored
from ..peers.heads import Floats, Vectors, need
from ..stages import Stages
from ..suite import artifact, data_option, output_option, study
from .scores import FUSIONS, Collection, bm25, correlation, cosines, mean, ndcg, overlap, read_collection
from .vectors import OURS, SUBJECTS, Subject, open_peer

__all__ = ["COLUMNS", "GROUPS", "TASKS", "main", "probe", "similarity"]

TASKS: Mapping[str, str] = {
    "transfer/xed_emotion": "test.tsv",
    "transfer/hatecheck": "test.tsv",
    "transfer/search_snippets": "test.tsv",
    "transfer/reuters_r8": "test.tsv",
    "transfer/tweeteval_hate": "test.tsv",
    "sst2": "dev.tsv",
    "trec": "test.tsv",
    "ag_news": "test.tsv",
    "tweeteval_offensive": "dev.tsv",
}
"""The tasks, and the file that judges each."""
GROUPS = {"all": tuple(TASKS), "transfer": tuple(task for task in TASKS if task.startswith("transfer/"))}
"""The tasks of a mean. The shipped student of the suite was trained on the tasks that are not in `transfer`."""
COLUMNS: Mapping[str, tuple[int | None, int]] = {"8": (8, 5), "64": (64, 3), "all": (None, 1)}
"""Train rows a label, and how many draws of them; None stands for all rows."""
_COLLECTIONS = ("xquad_en", "cranfield")
_MOST_ROWS = 10_000  # of a train file
_PREFIXES = (128, 64)
_BATCH = 2048  # texts in one call of a bundle


def probe(
    vectors: Floats, test: Floats, train: Dataset, truth: Sequence[str], rows: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """Return what `studies.paired.scored` finds for each column and draw.

    Args:
        vectors: `(len(rows), d) float32`, of the rows `rows` of `train`.
        test: `(n, d) float32`, of the texts that judge.
        train: the rows that heads learn from.
        truth: the n labels of `test`.
        rows: which rows of `train` have a vector.
    """
    labels, keys = [train.labels[i] for i in rows], [text_key(train.texts[i]) for i in rows]
    found: dict[str, list[dict[str, Any]]] = {}
    for column, (per_label, draws) in COLUMNS.items():
        found[column] = []
        for seed in range(draws):
            chosen = list(range(len(rows))) if per_label is None else draw(labels, per_label, seed)
            head = fit_fields(vectors[chosen], [labels[i] for i in chosen], keys=[keys[i] for i in chosen])
            best = head_logits(head, test).argmax(1).tolist()
            hits = np.array([head.labels[i] == label for i, label in zip(best, truth, strict=True)])
            found[column].append(scored(hits) | {"rows": len(chosen)})
    return found


def similarity(vectors: Vectors, pairs: Dataset) -> dict[str, Any]:
    """Return Spearman's correlation on graded `pairs`, whole and by prefixes, and what prefixes keep of neighbours."""
    grades = [float(label) for label in pairs.labels]
    texts = list(dict.fromkeys(str(text) for pair in pairs.texts for text in pair))
    place, x = {text: i for i, text in enumerate(texts)}, vectors(texts)
    a, b = (x[[place[str(pair[side])] for pair in pairs.texts]] for side in (0, 1))
    sizes = {"whole": x.shape[1]} | {str(size): size for size in _PREFIXES if size < x.shape[1]}
    return {
        "n": len(pairs),
        "texts": len(texts),
        "dim": x.shape[1],
        "spearman": {name: correlation(a[:, :size], b[:, :size], grades) for name, size in sizes.items()},
        "overlap": {name: mean(overlap(x, size)) for name, size in sizes.items() if name != "whole"},
    }


def _transfer(vectors: Vectors, train: Dataset, report: Dataset) -> dict[str, Any]:
    rows = _rows(train)
    x, test = (vectors([str(text) for text in texts]) for texts in ([train.texts[i] for i in rows], report.texts))
    return probe(x, test, train, report.labels, rows)


def _rows(train: Dataset) -> list[int]:
    """Return the rows of a train file that are used: all, or 10,000 of them."""
    found: list[int] = np.random.default_rng(0).permutation(len(train))[:_MOST_ROWS].tolist()
    return found


def _retrieval(vectors: Vectors, collection: Collection, words: Any) -> dict[str, list[float]]:
    """Return the nDCG@10 of each query: with vectors alone, and fused with the BM25 scores `words`."""
    own = cosines(vectors(list(collection.queries)), vectors(list(collection.documents)))
    found = {"plain": ndcg(own, collection)}
    found |= {name: ndcg(fuse(own) + fuse(words), collection) for name, fuse in FUSIONS.items()}
    return {name: [round(value, 6) for value in values.tolist()] for name, values in found.items()}


def _bundle(path: str) -> Subject:
    model = fieldrun.load(path, overflow="window")

    def fields(texts: Sequence[str]) -> Floats:
        parts = [model.field(list(texts[start : start + _BATCH])) for start in range(0, len(texts), _BATCH)]
        return np.concatenate(parts)

    about = artifact(Bundle.load(path)) | {"engine": model.engine, "overflow": "window"}
    return Subject(about=about, vectors=fields)


@study(__doc__)
@data_option
@click.option("--gte", type=click.Path(path_type=Path), help="The folder of gte-small, for the peers that need it.")
@click.option("--minilm", type=click.Path(path_type=Path), help="The folder of all-MiniLM-L6-v2, likewise.")
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="The folder that keeps vectors, results.")
@click.option("--bundle", default="reference", show_default=True, help="The bundle whose fields are measured.")
@click.option(
    "--subject",
    "subjects",
    type=click.Choice(SUBJECTS),
    multiple=True,
    default=SUBJECTS,
    help="What to measure; repeat it.  [default: all]",
)
@output_option
def main(
    data: Path,
    gte: Path | None,
    minilm: Path | None,
    cache: Path,
    bundle: str,
    subjects: Sequence[str],
    output: Path,
) -> None:
    """Write the record behind docs/transfer.md."""
    before = conditions()
    sets = {task: (read_tsv(data / task / "train.tsv"), read_tsv(data / task / name)) for task, name in TASKS.items()}
    pairs = read_tsv(data / "stsb" / "dev.tsv")
    collections = {name: read_collection(data / "retrieval" / name) for name in _COLLECTIONS}
    words = {name: bm25(collection) for name, collection in collections.items()}
    about = _about(sets, pairs, collections)
    sources = {name: folder for name, folder in (("gte", gte), ("minilm", minilm)) if folder is not None}
    opened = {
        name: _bundle(bundle) if name == OURS else open_peer(name, sources, cache, _say)
        for name in SUBJECTS
        if name in subjects
    }
    make_folder(cache / "results")
    results = {}
    for name, subject in opened.items():
        stages = Stages(
            cache / "results" / f"{name}.json", {"subject": subject.about, "data": about, "columns": dict(COLUMNS)}
        )
        results[name] = _measured(stages, name, subject.vectors, sets, pairs, collections, words)
    values = {
        "conditions": before,
        "data": about,
        "subjects": {name: subject.about for name, subject in opened.items()},
        "accuracy": {column: _accuracy(results, column) for column in COLUMNS},
        "differences": _differences(results),
        "similarity": {name: found["similarity"] for name, found in results.items()},
        "retrieval": {name: _ranked(collections[name], words[name], name, results) for name in collections},
        "bm25s": need("bm25s").__version__,
    }
    command = "python -m studies.transfer.measure --data DATA --gte FOLDER --minilm FOLDER --cache CACHE"
    command += "".join(f" --subject '{name}'" for name in opened if len(opened) < len(SUBJECTS))
    command += "" if bundle == "reference" else " --bundle FOLDER"
    write_record(output, "transfer", f"{command} -o {output.name}", values)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _about(
    sets: Mapping[str, tuple[Dataset, Dataset]], pairs: Dataset, collections: Mapping[str, Collection]
) -> dict[str, Any]:
    """Return what was read: rows, labels, hashes."""
    return {
        "tasks": {
            task: {
                "train_rows": len(train),
                "rows_used": len(_rows(train)),
                "train_sha256": train.sha256,
                "report": f"{task}/{report.path.name}",
                "n": len(report),
                "labels": len(set(train.labels)),
                "sha256": report.sha256,
            }
            for task, (train, report) in sets.items()
        },
        "similarity": {"file": f"stsb/{pairs.path.name}", "sha256": pairs.sha256},
        "retrieval": {
            name: {"documents": len(each.documents), "queries": len(each.queries), "sha256": dict(each.sha256)}
            for name, each in collections.items()
        },
    }


def _measured(
    stages: Stages,
    name: str,
    vectors: Vectors,
    sets: Mapping[str, tuple[Dataset, Dataset]],
    pairs: Dataset,
    collections: Mapping[str, Collection],
    words: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the results of one subject by set; those that `stages` has are taken from there."""

    def stage(what: str, work: Callable[..., Any], *arguments: Any) -> Any:
        return stages.do(f"{name} on {what}", lambda: work(vectors, *arguments))

    return {
        "retrieval": {key: stage(key, _retrieval, each, words[key]) for key, each in collections.items()},
        "similarity": stage("stsb", similarity, pairs),
        "tasks": {task: stage(task, _transfer, *both) for task, both in sets.items()},
    }


def _accuracy(results: Mapping[str, Mapping[str, Any]], column: str) -> dict[str, Any]:
    """Return, by subject, the accuracy on each task and the means of the groups."""
    draws = range(COLUMNS[column][1])
    runs = {
        name: [{task: each[column][draw] for task, each in found["tasks"].items()} for draw in draws]
        for name, found in results.items()
    }
    found = {group: published(runs, dict.fromkeys(tasks, "single")) for group, tasks in GROUPS.items()}
    means = {name: {group: each["means"][name]["all"] for group, each in found.items()} for name in results}
    return {"tasks": found["all"]["tasks"], "means": means}


def _differences(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return our accuracy minus that of each peer, by column: on the same rows, with heads from the same draws."""
    if OURS not in results:
        return {}
    found: dict[str, Any] = {}
    for name in results:
        if name == OURS:
            continue
        found[name] = {}
        for column in COLUMNS:
            ours, theirs = (
                {task: Hits.of(runs[column]).rows for task, runs in results[who]["tasks"].items()}
                for who in (OURS, name)
            )
            gained = {task: ours[task] - theirs[task] for task in ours}
            means = {group: difference([gained[task] for task in tasks]) for group, tasks in GROUPS.items()}
            found[name][column] = {"tasks": {task: difference([rows]) for task, rows in gained.items()}, "means": means}
    return found


def _ranked(collection: Collection, words: Any, name: str, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return nDCG@10 of BM25 and of every subject, and what fusing with a subject adds to BM25 on the same queries."""
    base = ndcg(words, collection)
    found: dict[str, Any] = {"n": len(base), "BM25": {"plain": mean(base)}}
    for subject, result in results.items():
        values = {key: np.array(each, np.float64) for key, each in result["retrieval"][name].items()}
        found[subject] = {key: mean(each) for key, each in values.items()}
        found[subject]["over_bm25"] = {key: mean(values[key] - base) for key in FUSIONS}
    return found


if __name__ == "__main__":
    main()
