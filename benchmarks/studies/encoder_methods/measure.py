"""The published compression methods on transformers, measured: low rank, clustering, rank experiment, mixtures.

    python -m studies.encoder_methods.measure MiniLM-L6=DIR gte-small=DIR --data DATA -o benchmarks/records

Each DIR is a Hugging Face folder of the BERT family; NAME defaults to the name of the folder. The study writes one
record per part and encoder, `encoder-PART-NAME.json`, for docs/methods-on-transformers.md. --work keeps finished
stages, so that the command can be stopped and run again. `--quick` runs a small test; its records are marked, and no
page shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

from fieldrun.errors import ExportError, UnknownName
from fieldrun_benchmarks.harness.record import write_record
from fieldrun_exporters.encoder.activations import Moments, accumulate
from fieldrun_exporters.encoder.importing import load_encoder
from fieldrun_exporters.encoder.model import Encoder

from ..stages import Stages, named, tell
from ..suite import data_option, output_option, study
from .cluster import ORDERS, Clustering, cluster, reorder, tune
from .controls import METHODS, lowrank
from .errors import block_parameters
from .mixt import drop_blocks, mixt, recover, recover_dropped
from .network import pooled_states
from .regression import Regression
from .tasks import Limits, Suite, Tokens, judge, read_suite, recovered, summary

__all__ = ["PARTS", "Study", "groups", "late", "main"]

RATIOS = (0.1, 0.2, 0.4)
ENTRIES = (16, 32, 64)
BRANCHES = (2, 3, 4)
SEEDS = (0, 1)
_REORDERED = 16  # values a matrix in the rank experiment
_METHOD = 1  # raise it when the same settings give other figures, so that stages in --work are measured again
_CLUSTER = Regression(steps=200, batch=32, rate=0.005)
_MIXT = Regression(steps=150, batch=32, rate=0.02)
_DROP = Regression(steps=150, batch=32, rate=0.005)
_COUNTED = "weights and biases of the blocks' dense maps; a factored map counts rank * (inputs + outputs) + outputs"
_QUICK = Limits(train=160, report=60, pairs=60, calibration=32, tuning=96)

Result = dict[str, Any]
Made = tuple[Encoder, Result]
"""An encoder, and what a record says of how it was made."""
Variant = tuple[str, Result, Callable[[], Made]]
"""A name, what distinguishes it, and how it is made."""


def late(layers: int) -> list[int]:
    """Return the blocks that mixtures replace, or that are dropped: the last third, at least one."""
    return list(range(layers - max(1, layers // 3), layers))


def groups(layers: int) -> dict[str, list[int]]:
    """Return the layers of the rank experiment: thirds, and all."""
    first, second = round(layers / 3), round(2 * layers / 3)
    numbers = list(range(layers))
    thirds = {"early": numbers[:first], "middle": numbers[first:second], "late": numbers[second:]}
    return {name: chosen for name, chosen in thirds.items() if chosen} | {"all": numbers}


class Study:
    """The study of one encoder; every variant of every part is a stage."""

    def __init__(self, name: str, folder: Path, suite: Suite, work: Path, *, quick: bool) -> None:
        self.name, self.suite, self.quick = name, suite, quick
        self.encoder = load_encoder(folder)
        self.tokens = Tokens(suite, self.encoder)
        self.plans = {"cluster": _CLUSTER, "mixt": _MIXT, "drop": _DROP}
        if quick:
            self.plans = {part: replace(plan, steps=2, batch=8) for part, plan in self.plans.items()}
        identity = {
            "method": _METHOD,
            "suite": suite.digest(),
            "encoder": dict(self.encoder.provenance["source"]["sha256"]),
            "pooling": self.encoder.config.pooling,
            "plans": {part: asdict(plan) for part, plan in self.plans.items()},
        }
        (work / name).mkdir(parents=True, exist_ok=True)
        self.stages = Stages(work / name / "stages.json", identity)
        self._clusterings: dict[int, tuple[Encoder, Clustering, Result]] = {}

    @cached_property
    def moments(self) -> Moments:
        """Of every map's inputs on the calibration texts."""
        return accumulate(self.encoder, self.tokens.of(self.suite.calibration), tell())

    @cached_property
    def dense_fields(self) -> Any:
        """The dense encoder's fields, `(texts, hidden)`; not kept between runs."""
        return judge(self.encoder, self.tokens, probes=False, progress=tell())[1]

    @cached_property
    def tuning(self) -> tuple[list[list[int]], Any]:
        """The tuning texts' ids and the dense encoder's pooled states of them."""
        ids = self.tokens.of(self.suite.tuning)
        return ids, pooled_states(self.encoder, ids, tell())

    def dense(self) -> Result:
        """Judge the dense encoder."""
        found: Result = self.stages.do("dense", lambda: judge(self.encoder, self.tokens, progress=tell())[0])
        return found

    def variant(self, name: str, make: Callable[[], Made], *, probes: bool = True) -> Result:
        """Make and judge one variant; `make` returns the encoder and facts. A refusal by a pass is a result, too."""

        def work() -> Result:
            try:
                encoder, facts = make()
            except ExportError as error:
                return {"refused": str(error)}
            found, _ = judge(encoder, self.tokens, dense=self.dense_fields, probes=probes, progress=tell())
            return found | {"facts": facts}

        found: Result = self.stages.do(name, work)
        return found

    def lowrank(self) -> Iterator[Variant]:
        """A3 as published and with exact biases, and the two SVDs, at every ratio."""

        def make(ratio: float, method: str) -> Made:
            encoder, report = lowrank(self.encoder, self.moments, ratio, method, tell())
            return encoder, _facts(report.changed)

        for ratio in RATIOS[1:2] if self.quick else RATIOS:
            for method in METHODS:
                yield f"{method}, {ratio:.0%}", {"method": method, "ratio": ratio}, partial(make, ratio, method)

    def cluster(self) -> Iterator[Variant]:
        """Few values per matrix, untuned, with tuned centroids, and with tuned centroids and biases."""

        def tuned(entries: int, biases: bool) -> Made:
            _, clustering, facts = self.clustering(entries)
            encoder, gained = tune(self.encoder, clustering, *self.tuning, self.plans["cluster"], tell(), biases=biases)
            return encoder, _only_sizes(facts) | {"held_out": gained}

        for entries in ENTRIES[:1] if self.quick else ENTRIES:
            yield str(entries), {"entries": entries, "tuned": []}, partial(self.clustered, entries)
            for moved in (["centroids"], ["centroids", "biases"]):
                name, about = f"{entries} tuned {' and '.join(moved)}", {"entries": entries, "tuned": moved}
                yield name, about, partial(tuned, entries, "biases" in moved)

    def clustering(self, entries: int) -> tuple[Encoder, Clustering, Result]:
        """Cluster the encoder, once in a run."""
        if entries not in self._clusterings:
            encoder, clustering, changed = cluster(self.encoder, entries, self.moments, tell())
            self._clusterings[entries] = encoder, clustering, _facts(changed)
        return self._clusterings[entries]

    def clustered(self, entries: int) -> Made:
        """The encoder with few values per matrix."""
        encoder, _, facts = self.clustering(entries)
        return encoder, facts

    def rank(self) -> Iterator[Variant]:
        """The labels' values changed, with order kept or broken, by groups of layers; against untuned clusters."""

        def make(order: str, layers: Sequence[int], seed: int) -> Made:
            encoder, clustering, _ = self.clustering(_REORDERED)
            return reorder(encoder, clustering, order, layers, seed)

        for group, layers in groups(self.encoder.config.layers).items():
            for order in ORDERS:
                for seed in SEEDS[:1] if self.quick else SEEDS:
                    about = {"order": order, "group": group, "layers": list(layers), "seed": seed}
                    yield f"{order}, {group}, seed {seed}", about, partial(make, order, layers, seed)

    def mixt(self) -> Iterator[Variant]:
        """Mixtures in the last third of the blocks, started and recovered; the same blocks dropped."""
        layers, whole = late(self.encoder.config.layers), block_parameters(self.encoder)

        def start(branches: int) -> Made:
            encoder, _, changed = mixt(self.encoder, branches, layers, self.moments, tell())
            return encoder, _facts(changed, whole)

        def back(branches: int) -> Made:
            _, mixture, changed = mixt(self.encoder, branches, layers, None, tell())
            encoder, gained = recover(self.encoder, mixture, *self.tuning, self.plans["mixt"], tell())
            return encoder, _only_sizes(_facts(changed, whole)) | {"held_out": gained}  # errors are those of the start

        def dropped() -> Made:
            encoder = drop_blocks(self.encoder, layers)
            left = block_parameters(encoder)
            return encoder, {"parameters": {"before": whole, "after": left, "share": round(left / whole, 5)}}

        def made_up() -> Made:
            encoder, facts = dropped()
            left = encoder.config.layers
            last = list(range(max(0, left - len(layers)), left))
            encoder, gained = recover_dropped(encoder, last, *self.tuning, self.plans["drop"], tell())
            return encoder, facts | {"tuned_layers": last, "held_out": gained}

        for branches in BRANCHES[:1] if self.quick else BRANCHES:
            yield f"mixt {branches}", {}, partial(start, branches)
            yield f"mixt {branches} recovered", {}, partial(back, branches)
        yield "dropped", {}, dropped
        yield "dropped recovered", {}, made_up

    def measured(self, part: str) -> Result:
        """Return what the record of `part` has of its own: every variant, and what it was compared with."""
        dense = base = self.dense()
        found: Result = {}
        if part == "rank":
            base = self.variant(f"cluster: {_REORDERED}", partial(self.clustered, _REORDERED))
            found = {"entries": _REORDERED, "clustered": self.shown(base, dense)}
        raw, variants = {}, {}
        for name, about, make in PARTS[part](self):
            raw[name] = self.variant(f"{part}: {name}", make, probes=part != "rank")
            variants[name] = about | self.shown(raw[name], base)
            if about.get("tuned") and "refused" not in raw[name]:
                variants[name]["recovered"] = recovered(raw[name], raw[str(about["entries"])], dense, self.suite)
        if part == "lowrank":
            found["counted"] = _COUNTED
        elif part == "cluster":
            found["tuning"] = asdict(self.plans["cluster"])
        elif part == "mixt":
            found["layers"] = late(self.encoder.config.layers)
            found["recovery"] = {name: asdict(self.plans[name]) for name in ("mixt", "drop")}
        return found | {"variants": variants}

    def shown(self, found: Result, base: Result) -> Result:
        """Return what a record shows of a variant against `base`."""
        if "refused" in found:
            return {"refused": found["refused"]}
        return {"facts": found.get("facts", {})} | summary(found, base, self.suite)

    def write(self, part: str, out: Path) -> None:
        """Measure `part` and write its record."""
        values = self.measured(part)
        config = self.encoder.config
        about = {
            "name": self.name,
            "sha256": dict(self.encoder.provenance["source"]["sha256"]),
            "layers": config.layers,
            "hidden": config.hidden,
            "heads": config.heads,
            "pooling": config.pooling,
            "parameters": self.encoder.parameters(),
            "block_parameters": block_parameters(self.encoder),
        }
        record = {
            "part": part,
            "quick": self.quick,
            "encoder": about,
            "suite": self.suite.about(),
            "dense": self.shown(self.dense(), self.dense()),
            **values,
            "seconds": {n: s for n, s in self.stages.state["seconds"].items() if n == "dense" or n.startswith(part)},
            "torch_threads": torch.get_num_threads(),
            "libraries": {"torch": version("torch")},
        }
        command = "python -m studies.encoder_methods.measure NAME=DIR ... --data DATA -o RECORDS"
        write_record(out / f"encoder-{part}-{self.name}.json", f"encoder-{part}", command, record)


PARTS: dict[str, Callable[[Study], Iterator[Variant]]] = {
    "lowrank": Study.lowrank,
    "cluster": Study.cluster,
    "rank": Study.rank,
    "mixt": Study.mixt,
}


def _facts(changed: Mapping[str, Mapping[str, Any]], whole: int | None = None) -> Result:
    """Return sums and means over a pass's maps; parameters are those of all blocks where `whole` is their number."""
    facts: Result = {}
    for unit in ("parameters", "bytes"):
        if all(f"{unit}_after" in entry for entry in changed.values()):
            before, after = (
                sum(int(entry[f"{unit}_{when}"]) for entry in changed.values()) for when in ("before", "after")
            )
            if unit == "parameters" and whole is not None:
                before, after = whole, whole - before + after
            facts[unit] = {"before": before, "after": after, "share": round(after / before, 5)}
    for error in ("weight_error", "output_error", "energy"):
        values = [float(entry[error]) for entry in changed.values() if error in entry]
        if values:
            facts[f"mean_{error}"] = round(sum(values) / len(values), 5)
    return facts


def _only_sizes(facts: Result) -> Result:
    return {name: value for name, value in facts.items() if not name.startswith("mean_")}


@study(__doc__)
@click.argument("encoders", nargs=-1, required=True, metavar="[NAME=]DIR...")
@data_option
@output_option
@click.option("--parts", default=",".join(PARTS), show_default=True, help="The parts to measure, separated by commas.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("build/encoder-methods"),
    show_default=True,
    help="The folder that keeps finished stages.",
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="The threads of torch.")
@click.option("--quick", is_flag=True, help="Measure the first encoder only, on few rows, as a test.")
def main(encoders: Sequence[str], data: Path, output: Path, parts: str, work: Path, threads: int, quick: bool) -> None:
    """Write the records behind docs/methods-on-transformers.md."""
    chosen = parts.split(",")
    for part in chosen:
        if part not in PARTS:
            raise UnknownName("part", part, tuple(PARTS))
    folders = dict(named(encoder) for encoder in (encoders[:1] if quick else encoders))
    torch.set_num_threads(threads)
    click.echo("reading the suite", err=True)
    suite = read_suite(data, _QUICK if quick else Limits())
    for name, folder in folders.items():
        study = Study(name, folder, suite, work / "quick" if quick else work, quick=quick)
        for part in chosen:
            study.write(part, output)


if __name__ == "__main__":
    main()
