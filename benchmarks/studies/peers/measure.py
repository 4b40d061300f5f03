r"""Measure fieldrun beside its peers: one interleaved bench on each of two sets, every subject in its own process.

    python -m studies.peers.measure --data DATA --gte FOLDER --minilm FOLDER --work WORK \
        -o benchmarks/records/peers.json
    python -m studies.peers.measure --compare benchmarks/records/peers.json benchmarks/records/peers-again.json
    fieldrun report benchmarks/records/peers.json -o peers.html

The peers are made in WORK unless it has them (`models`; `pip install 'fieldrun[bench,peers]'`); `--prepare`
makes them and stops. The time is that from a text to its label: fieldrun answers all of its single tasks, or one where
the name says so, and a peer answers one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click

from fieldrun.doctor import examine
from fieldrun.errors import FieldrunError
from fieldrun.evaluation.dataset import read_tsv
from fieldrun_benchmarks.harness.bench import measure
from fieldrun_benchmarks.harness.record import conditions, write_record
from fieldrun_benchmarks.harness.settings import Settings
from fieldrun_benchmarks.harness.subject import SubjectSpec, parse_subject
from fieldrun_benchmarks.harness.workload import read_workload

from ..suite import study
from .models import PEERS
from .models import prepare as prepare_peer
from .tables import OURS, TOKENIZER, failures, read_peers, reproduced

__all__ = ["main"]

_REPORT = {"sst2": "dev.tsv", "trec": "test.tsv"}
_SETTINGS = Settings(
    seconds=12.0,
    slice_s=0.1,
    short_s=1.5,
    batches=(256,),
    threads=(1,),
    cold_runs=5,
    scenarios=("offline",),
)


@study(__doc__)
@click.option("--data", type=click.Path(path_type=Path), help="The folder with sst2 and trec.")
@click.option("--gte", type=click.Path(path_type=Path), help="The folder of gte-small.")
@click.option("--minilm", type=click.Path(path_type=Path), help="The folder of all-MiniLM-L6-v2.")
@click.option("--work", type=click.Path(path_type=Path), help="The folder that keeps the peers.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The record to write.")
@click.option("--bundle", default="reference", show_default=True, help="The bundle to measure.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.01),
    default=_SETTINGS.seconds,
    show_default=True,
    help="Seconds of a repeat.",
)
@click.option("--without", multiple=True, metavar="PEER", help="Leave this peer out; repeat it.")
@click.option("--prepare", is_flag=True, help="Make the peers and their heads, and stop.")
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="RECORD RECORD",
    help="Compare two records.",
)
def main(
    data: Path | None,
    gte: Path | None,
    minilm: Path | None,
    work: Path | None,
    output: Path | None,
    bundle: str,
    seconds: float,
    without: tuple[str, ...],
    prepare: bool,
    compare: tuple[Path, Path] | None,
) -> None:
    r"""Measure fieldrun beside its peers, or say how far two such records agree."""
    if compare:
        click.echo(reproduced(*(read_peers(path) for path in compare)))
        return
    if data is None or gte is None or minilm is None or work is None or (output is None and not prepare):
        raise click.UsageError("give --data, --gte, --minilm, --work, and -o (the record to write) or --prepare")
    for name in without:
        if name not in PEERS:
            raise click.UsageError(f"no peer {name!r}; there are {', '.join(PEERS)}")
    train = {task: data / task / "train.tsv" for task in _REPORT}
    folders = {
        peer.name: prepare_peer(key, {"minilm": minilm}.get(peer.source, gte), work, train, _say)
        for key, peer in PEERS.items()
        if key not in without
    }
    if output is None or prepare:
        return
    before, settings, workloads = conditions(), replace(_SETTINGS, seconds=seconds), {}
    for task, name in _REPORT.items():
        report = data / task / name

        def progress(phase: str, done: int, total: int, task: str = task) -> None:
            _say(f"{task}: {phase}, {done} of {total}")

        values = measure(
            _specs(bundle, task, folders),
            read_workload([report]),
            settings,
            {task: read_tsv(report)},
            against=(OURS, TOKENIZER),
            progress=progress,
        )
        workloads[f"{task}/{Path(name).stem}"] = values
    command = "python -m studies.peers.measure --data DATA --gte FOLDER --minilm FOLDER --work WORK"
    command += "".join(f" --without {key}" for key in without) + f" -o {output.name}"
    values = {"conditions": before, "system": examine(commands=False), "workloads": workloads}
    write_record(output, "peers", command, values)
    failed = failures(values)
    if failed:
        raise FieldrunError(f"{'; '.join(failed)}; {output} has the other subjects; leave this one out with --without")


def _specs(bundle: str, task: str, folders: Mapping[str, Path]) -> list[SubjectSpec]:
    subjects = {
        OURS: f"{bundle}@native",
        f"{OURS}, one task": f"{bundle}@native#{task}",
        "fieldrun onnxruntime": f"{bundle}@onnxruntime",
        "fieldrun numpy": f"{bundle}@numpy",
        TOKENIZER: f"tokenizer:{bundle}",
    }
    subjects |= {name: f"peer:{folder}#{task}" for name, folder in folders.items()}
    return [replace(parse_subject(subject), name=name) for name, subject in subjects.items()]


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
