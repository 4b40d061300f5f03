"""Measure fieldrun against its peers in one interleaved run on one thread: latency, throughput, accuracy, one record.

    python -m fieldrun_benchmarks.peers --data DATA --gte FOLDER --minilm FOLDER --work WORK --profile \
        -o benchmarks/records/peers.json

The peers are made in WORK when it does not have them (see `peer_models`; `pip install 'fieldrun[peers]'`); `--prepare`
makes them and stops, so that this can be done in an environment of its own. What each subject is timed on: text in,
label out, tokenization and head included; fieldrun answers all of its tasks, a peer one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

# one thread each, for a comparison that means something; before NumPy, tokenizers and the peers are imported
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

import fieldrun  # noqa: E402
from fieldrun.bundle import Bundle  # noqa: E402
from fieldrun.dataset import Dataset, read_tsv  # noqa: E402
from fieldrun.errors import DatasetError  # noqa: E402
from fieldrun.metrics import wilson_interval  # noqa: E402

from .isolated_peers import prepare_isolated  # noqa: E402
from .latency import Micros, summary, time_in_turns  # noqa: E402
from .ort_profile import profile  # noqa: E402
from .peer_models import PEERS, Peer, open_peer  # noqa: E402
from .record import write_record  # noqa: E402

__all__ = ["BASELINE", "Subject", "accuracy", "latency", "main", "throughput"]

BASELINE = "tokenizer"
_REPORT = {"sst2": "dev.tsv", "trec": "test.tsv"}
_PROFILED = "trec"
_ENGINES = ("native", "onnxruntime", "numpy")
_SOURCES = {"model2vec": "gte", "gte": "gte", "minilm": "minilm"}
_SLOW = {"gte": 10, "minilm": 10}  # timed on every so many-th text
_BATCH = 256
_BATCHES = 4  # a round
_SCENARIO = (
    "one thread, one process, in turns: in every turn all subjects are called once, each with another text, in an "
    "order that changes; a round is every text once; `every` 10 is called with each tenth text only, after the others"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """What is timed: `one` text in, label out, and the same for a `batch`; `predict` gives its labels of the task.

    `ours` is fieldrun answering all its tasks, which every peer is compared with. A subject with `every` above 1 is
    timed on every n-th text. None: not measured.
    """

    name: str
    one: Callable[[str], object]
    batch: Callable[[list[str]], object] | None = None
    predict: Callable[[Sequence[str]], list[str]] | None = None
    every: int = 1
    ours: bool = False


def latency(subjects: Sequence[Subject], texts: Sequence[str], *, rounds: int) -> dict[str, Any]:
    """Time one text at a time; return percentiles and ratios by subject.

    A ratio is one of medians over the texts that both were timed on, worked out per round: its median over the rounds,
    and the smallest and the largest.
    """
    every = {subject.name: subject.every for subject in subjects}
    calls = {subject.name: subject.one for subject in subjects}
    timed = time_in_turns(calls, texts, rounds=rounds, every=every, apart=True)
    result: dict[str, Any] = {}
    for subject in subjects:
        micros = timed[subject.name]
        result[subject.name] = summary(micros).to_dict() | {
            "texts": len(range(0, len(texts), subject.every)),
            "every": subject.every,
            "to_tokenizer": _ratio(_medians, micros, timed[BASELINE]),
            "to_fieldrun": {ours: _ratio(_medians, micros, timed[ours]) for ours in _ours(subjects)},
        }
    return result


def throughput(subjects: Sequence[Subject], texts: Sequence[str], *, rounds: int) -> dict[str, Any]:
    """Time batches of `_BATCH` texts, `_BATCHES` a round; return texts a second and ratios of it by subject."""
    wrapped = [str(texts[i % len(texts)]) for i in range(_BATCH * _BATCHES)]
    batches = [wrapped[start : start + _BATCH] for start in range(0, len(wrapped), _BATCH)]
    calls = {subject.name: subject.batch for subject in subjects if subject.batch is not None}
    timed = time_in_turns(calls, batches, rounds=rounds, warm_up=2, apart=True)
    ours = [name for name in _ours(subjects) if name in calls]
    return {
        name: {
            "rounds": rounds,
            "texts_per_round": len(wrapped),
            "texts_per_s": round(float(np.median(len(wrapped) / (micros.sum(1) / 1e6)))),
            "to_tokenizer": _ratio(_totals, micros, timed[BASELINE]),
            "to_fieldrun": {other: _ratio(_totals, micros, timed[other]) for other in ours},
        }
        for name, micros in timed.items()
    }


def accuracy(subjects: Sequence[Subject], data: Dataset) -> dict[str, Any]:
    """Return each subject's accuracy on `data` with its 95 % interval, from the labels it gives one text at a time."""
    result = {}
    for subject in subjects:
        if subject.predict is not None:
            predicted = [label for text in data.texts for label in subject.predict([str(text)])]
            hits = sum(truth == label for truth, label in zip(data.labels, predicted, strict=True))
            interval = wilson_interval(hits, len(data))
            result[subject.name] = {"n": len(data), "accuracy": hits / len(data), "ci95": list(interval)}
    return result


def _ours(subjects: Sequence[Subject]) -> list[str]:
    return [subject.name for subject in subjects if subject.ours]


def _medians(micros: Micros) -> Micros:
    medians: Micros = np.nanmedian(micros, axis=1)
    return medians


def _totals(micros: Micros) -> Micros:
    totals: Micros = np.nansum(micros, axis=1)
    return totals


def _ratio(reduce: Callable[[Micros], Micros], above: Micros, below: Micros) -> dict[str, float]:
    """Return how many times `below`'s time `above` takes: the median, least and largest ratio of a round."""
    both = np.isnan(above) | np.isnan(below)
    ratios = reduce(np.where(both, np.nan, above)) / reduce(np.where(both, np.nan, below))
    values = {"median": np.median(ratios), "min": ratios.min(), "max": ratios.max()}
    return {key: round(float(value), 3) for key, value in values.items()}


def _answer_all(model: fieldrun.FieldModel, texts: Sequence[str]) -> object:
    """Text in, the labels of all single tasks out."""
    return model.predict_all(texts)


def _fieldrun(model: fieldrun.FieldModel, task: str) -> list[Subject]:
    def predict(texts: Sequence[str]) -> list[str]:
        return model.predict(texts, task)

    return [
        Subject(
            name=f"fieldrun {model.engine}, all labels",
            one=lambda text: _answer_all(model, [text]),
            batch=lambda texts: _answer_all(model, texts),
            predict=predict,
            ours=True,
        ),
        Subject(name=f"fieldrun {model.engine}, one task", one=lambda text: predict([text])),
    ]


def _peer(peer: Peer, task: str, every: int) -> Subject:
    def predict(texts: Sequence[str]) -> list[str]:
        return peer.labels(texts, task)

    batch = predict if every == 1 else None
    return Subject(name=peer.name, one=lambda text: predict([text]), batch=batch, predict=predict, every=every)


def _subjects(
    tokenizer: Tokenizer, models: Sequence[fieldrun.FieldModel], peers: Mapping[str, Peer], task: str
) -> list[Subject]:
    alone = Subject(
        name=BASELINE,
        one=lambda text: tokenizer.encode_batch_fast([text])[0].ids,
        batch=lambda texts: [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)],
    )
    ours = [subject for model in models for subject in _fieldrun(model, task)]
    return [alone, *ours, *(_peer(peer, task, _SLOW.get(key, 1)) for key, peer in peers.items())]


def _read(data: Path, task: str, name: str) -> Dataset:
    found = read_tsv(data / task / name)
    if found.kind != "single":
        raise DatasetError(f"{found.path} holds pairs; the peers are measured on single texts")
    return found


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with sst2 and trec.")
@click.option("--gte", type=click.Path(path_type=Path), required=True, help="Folder of gte-small.")
@click.option("--minilm", type=click.Path(path_type=Path), required=True, help="Folder of all-MiniLM-L6-v2.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder that keeps the peers.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The record.")
@click.option("--bundle", default="reference", show_default=True, help="The bundle to measure.")
@click.option("--rounds", type=click.IntRange(min=7), default=9, show_default=True, help="Rounds of everything.")
@click.option("--profile", "profiled", is_flag=True, help="Write ONNX Runtime's profile into the record.")
@click.option("--prepare", is_flag=True, help="Only make the peers and their heads.")
@click.option("--isolated", multiple=True, help="With --prepare: also this peer of its own environment; repeatable.")
def main(
    data: Path,
    gte: Path,
    minilm: Path,
    work: Path,
    output: Path | None,
    bundle: str,
    rounds: int,
    profiled: bool,
    prepare: bool,
    isolated: tuple[str, ...],
) -> None:
    """Write the record behind the README's table of peers."""
    if output is None and not prepare:
        raise click.UsageError("give -o, the record to write, or --prepare")
    train = {task: _read(data, task, "train.tsv") for task in _REPORT}
    sources = {"gte": gte, "minilm": minilm}
    peers = {key: open_peer(spec, sources[_SOURCES[key]], work, train, _say) for key, spec in PEERS.items()}
    for key in isolated:
        prepare_isolated(key, work, {task: data / task / "train.tsv" for task in _REPORT}, _say)
    if output is None or prepare:
        return
    sets = {task: _read(data, task, name) for task, name in _REPORT.items()}
    opened = Bundle.load(bundle)
    tokenizer = Tokenizer.from_file(str(opened.path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with fieldrun.load(bundle, engine="auto") as model:
        auto = {"engine": model.engine, "reason": model.engine_reason}
        single = [task for task in model.tasks if model.kind(task) == "single"]
    models = [fieldrun.load(bundle, engine=engine) for engine in _ENGINES]
    workloads = {}
    for task, found in sets.items():
        _say(f"measuring on {task}")
        texts = [str(text) for text in found.texts]
        subjects = _subjects(tokenizer, models, peers, task)
        workloads[task] = {
            "file": f"{task}/{found.path.name}",
            "sha256": found.sha256,
            "texts": len(texts),
            "mean_tokens": round(float(np.mean([len(e.ids) for e in tokenizer.encode_batch_fast(texts)])), 1),
            "accuracy": accuracy(subjects, found),
            "latency": latency(subjects, texts, rounds=rounds),
            "throughput": throughput(subjects, texts, rounds=rounds),
        }
    values = {
        "artifact": {
            "name": opened.manifest.name,
            "recipe": opened.manifest.recipe["name"],
            "bytes": opened.total_bytes(),
            "parameters": opened.manifest.network.parameters,
            "weights_sha256": opened.manifest.files["weights.safetensors"].sha256,
            "single_tasks": single,
        },
        "auto": auto,
        "scenario": _SCENARIO,
        "settings": {"RAYON_NUM_THREADS": os.environ["RAYON_NUM_THREADS"], "onnxruntime_intra_op": 1, "rounds": rounds},
        "peers": {peer.name: dict(peer.about) for peer in peers.values()},
        "workloads": workloads,
        "profile": _profile(opened, tokenizer, models[0], sets) if profiled else None,
        "profile_reason": None if profiled else "not asked for; run with --profile",
    }
    for model in models:
        model.close()
    command = "python -m fieldrun_benchmarks.peers --data DATA --gte FOLDER --minilm FOLDER --work WORK"
    command += f"{' --profile' if profiled else ''} -o benchmarks/records/peers.json"
    write_record(output, "peers", command, values)


def _profile(
    bundle: Bundle, tokenizer: Tokenizer, model: fieldrun.FieldModel, sets: Mapping[str, Dataset]
) -> dict[str, Any]:
    _say("profiling")
    data = sets[_PROFILED]
    found = profile(bundle, tokenizer, [str(text) for text in data.texts], lambda text: _answer_all(model, [text]))
    found["texts"]["file"] = f"{_PROFILED}/{data.path.name}"
    return found


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
