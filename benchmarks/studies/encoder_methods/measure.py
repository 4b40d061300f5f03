"""The published compression methods on transformers, measured: low rank, clustering, rank experiment, mixtures.

    python -m studies.encoder_methods.measure MiniLM-L6=DIR gte-small=DIR --data DATA --out benchmarks/records

Every DIR is a Hugging Face folder of the BERT family; without NAME= its folder's name is taken. One record per part and
encoder, `encoder-PART-NAME.json`, behind docs/methods-on-transformers.md. What was done is kept in --work, so that a
killed run goes on. `--quick` measures little, to see that all works; its records say so and are not for the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

from fieldrun.errors import ExportError, UnknownName, UsageError
from fieldrun.formats.progress import Progress
from fieldrun_benchmarks.harness.record import write_record
from fieldrun_exporters.encoder.activations import Moments, accumulate
from fieldrun_exporters.encoder.importing import load_encoder
from fieldrun_exporters.encoder.model import Encoder
from studies.encoder_methods.cluster import ORDERS, Clustering, cluster, reorder, tune
from studies.encoder_methods.controls import METHODS, lowrank
from studies.encoder_methods.errors import block_parameters
from studies.encoder_methods.mixt import drop_blocks, mixt, recover, recover_dropped
from studies.encoder_methods.network import pooled_states
from studies.encoder_methods.regression import Regression

from ..stages import Stages, tell
from .tasks import Limits, Suite, Tokens, judge, read_suite, recovered, summary

__all__ = ["PARTS", "Study", "groups", "late", "main"]

RATIOS = (0.1, 0.2, 0.4)
ENTRIES = (16, 32, 64)
BRANCHES = (2, 3, 4)
SEEDS = (0, 1)
_REORDERED = 16  # values a matrix in the rank experiment
_METHOD = 1  # raise it when the same settings give other figures: what --work keeps is then measured again
_CLUSTER = Regression(steps=200, batch=32, rate=0.005)
_MIXT = Regression(steps=150, batch=32, rate=0.02)
_DROP = Regression(steps=150, batch=32, rate=0.005)
_QUICK = Limits(train=160, report=60, pairs=60, calibration=32, tuning=96)

Result = dict[str, Any]


def late(layers: int) -> list[int]:
    """Return the blocks that mixtures replace, or that are dropped: the last third, at least one."""
    return list(range(layers - max(1, layers // 3), layers))


def groups(layers: int) -> dict[str, list[int]]:
    """Return the layers of the rank experiment: thirds, and all."""
    first, second = round(layers / 3), round(2 * layers / 3)
    numbers = list(range(layers))
    thirds = {"early": numbers[:first], "middle": numbers[first:second], "late": numbers[second:]}
    return {name: chosen for name, chosen in thirds.items() if chosen} | {"all": numbers}


def _progress() -> Progress:
    said = tell()
    return lambda _, done, total: said(done, total)


class Study:
    """One encoder: what it is compared with, and every variant of every part as a stage of its own."""

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
        self._moments: Moments | None = None
        self._dense: Any = None
        self._tuning: Any = None
        self._clusterings: dict[int, tuple[Encoder, Clustering, Result]] = {}

    def moments(self) -> Moments:
        """Of every map's inputs on the calibration texts."""
        if self._moments is None:
            self._moments = accumulate(self.encoder, self.tokens.of(self.suite.calibration), _progress())
        return self._moments

    def dense_fields(self) -> Any:
        """The dense encoder's fields, `(texts, hidden)`, made anew in every run."""
        if self._dense is None:
            _, self._dense = judge(self.encoder, self.tokens, probes=False, progress=_progress())
        return self._dense

    def tuning(self) -> tuple[list[list[int]], Any]:
        """The tuning texts' ids and the dense encoder's pooled states of them."""
        if self._tuning is None:
            ids = self.tokens.of(self.suite.tuning)
            self._tuning = ids, pooled_states(self.encoder, ids, _progress())
        ids, states = self._tuning
        return ids, states

    def dense(self) -> Result:
        """Judge the dense encoder."""
        found: Result = self.stages.do("dense", lambda: judge(self.encoder, self.tokens, progress=_progress())[0])
        return found

    def variant(self, name: str, make: Callable[[], tuple[Encoder, Result]], *, probes: bool = True) -> Result:
        """Make and judge one variant; `make` returns the encoder and facts. What a pass refuses is a finding too."""

        def work() -> Result:
            try:
                encoder, facts = make()
            except ExportError as error:
                return {"refused": str(error)}
            found, _ = judge(encoder, self.tokens, dense=self.dense_fields(), probes=probes, progress=_progress())
            return found | {"facts": facts}

        found: Result = self.stages.do(name, work)
        return found

    def lowrank(self) -> Result:
        """A3 as published and with exact biases, and the two SVDs, at every ratio."""
        dense = self.dense()
        variants: Result = {}
        for ratio in RATIOS[1:2] if self.quick else RATIOS:
            for method in METHODS:
                name = f"{method}, {ratio:.0%}"

                def make(ratio: float = ratio, method: str = method) -> tuple[Encoder, Result]:
                    encoder, report = lowrank(self.encoder, self.moments(), ratio, method, _progress())
                    return encoder, _facts(report.changed)

                found = self.variant(f"lowrank: {name}", make)
                variants[name] = {"method": method, "ratio": ratio} | self.shown(found, dense)
        counted = (
            "weights and biases of the blocks' dense maps; a factored map counts rank * (inputs + outputs) + outputs"
        )
        return {"variants": variants, "counted": counted}

    def cluster(self) -> Result:
        """Few values per matrix, untuned, with tuned centroids, and with tuned centroids and biases."""
        dense = self.dense()
        variants: Result = {}
        plan = self.plans["cluster"]
        for entries in ENTRIES[:1] if self.quick else ENTRIES:

            def untuned(entries: int = entries) -> tuple[Encoder, Result]:
                encoder, _, facts = self.clustering(entries)
                return encoder, facts

            def tuned(entries: int = entries, biases: bool = False) -> tuple[Encoder, Result]:
                _, clustering, facts = self.clustering(entries)
                ids, states = self.tuning()
                encoder, _, report = tune(self.encoder, clustering, ids, states, plan, _progress(), biases=biases)
                return encoder, _only_sizes(facts) | {"held_out": dict(report.changed["field"])}

            before = self.variant(f"cluster: {entries}", untuned)
            variants[str(entries)] = {"entries": entries, "tuned": []} | self.shown(before, dense)
            for moved in (["centroids"], ["centroids", "biases"]):
                name, biases = f"{entries} tuned {' and '.join(moved)}", "biases" in moved
                after = self.variant(f"cluster: {name}", partial(tuned, biases=biases))
                variants[name] = {"entries": entries, "tuned": moved} | self.shown(after, dense)
                if "refused" not in after:
                    variants[name]["recovered"] = recovered(after, before, dense, self.suite)
        return {"variants": variants, "tuning": asdict(plan)}

    def clustering(self, entries: int) -> tuple[Encoder, Clustering, Result]:
        """Cluster the encoder, once in a run."""
        if entries not in self._clusterings:
            encoder, clustering, report = cluster(self.encoder, entries, self.moments(), _progress())
            self._clusterings[entries] = encoder, clustering, _facts(report.changed)
        return self._clusterings[entries]

    def rank(self) -> Result:
        """The labels' values changed, with order kept or broken, by groups of layers; against untuned clusters."""
        dense = self.dense()
        base = self.variant(f"cluster: {_REORDERED}", lambda: self.clustering(_REORDERED)[::2])
        variants: Result = {}
        for group, layers in groups(self.encoder.config.layers).items():
            for order in ORDERS:
                for seed in SEEDS[:1] if self.quick else SEEDS:
                    name = f"{order}, {group}, seed {seed}"

                    def make(order: str = order, layers: Sequence[int] = layers, seed: int = seed) -> Any:
                        encoder, clustering, _ = self.clustering(_REORDERED)
                        return reorder(encoder, clustering, order, layers, seed)

                    found = self.variant(f"rank: {name}", make, probes=False)
                    about = {"order": order, "group": group, "layers": list(layers), "seed": seed}
                    variants[name] = about | self.shown(found, base)
        return {"entries": _REORDERED, "clustered": self.shown(base, dense), "variants": variants}

    def mixt(self) -> Result:
        """Mixtures in the last third of the blocks, started and recovered; the same blocks dropped."""
        dense, layers = self.dense(), late(self.encoder.config.layers)
        variants: Result = {}
        whole = block_parameters(self.encoder)
        for branches in BRANCHES[:1] if self.quick else BRANCHES:

            def start(branches: int = branches) -> tuple[Encoder, Result]:
                encoder, _, report = mixt(self.encoder, branches, layers, self.moments(), _progress())
                return encoder, _facts(report.changed, whole)

            def back(branches: int = branches) -> tuple[Encoder, Result]:
                _, mixture, report = mixt(self.encoder, branches, layers, None, _progress())
                ids, states = self.tuning()
                encoder, _, gained = recover(self.encoder, mixture, ids, states, self.plans["mixt"], _progress())
                sizes = _only_sizes(_facts(report.changed, whole))  # the errors are those of the start
                return encoder, sizes | {"held_out": dict(gained.changed["field"])}

            for name, make in ((f"mixt {branches}", start), (f"mixt {branches} recovered", back)):
                variants[name] = self.shown(self.variant(f"mixt: {name}", make), dense)

        def dropped() -> tuple[Encoder, Result]:
            encoder, _ = drop_blocks(self.encoder, layers)
            left = block_parameters(encoder)
            return encoder, {"parameters": {"before": whole, "after": left, "share": round(left / whole, 5)}}

        def made_up() -> tuple[Encoder, Result]:
            encoder, facts = dropped()
            ids, states = self.tuning()
            left = encoder.config.layers
            last = list(range(max(0, left - len(layers)), left))
            encoder, report = recover_dropped(encoder, last, ids, states, self.plans["drop"], _progress())
            return encoder, facts | {"tuned_layers": last, "held_out": dict(report.changed["field"])}

        for name, shorten in (("dropped", dropped), ("dropped recovered", made_up)):
            variants[name] = self.shown(self.variant(f"mixt: {name}", shorten), dense)
        plans = {part: asdict(self.plans[part]) for part in ("mixt", "drop")}
        return {"layers": layers, "variants": variants, "recovery": plans}

    def shown(self, found: Result, base: Result) -> Result:
        """Return what a record shows of a variant against `base`."""
        if "refused" in found:
            return {"refused": found["refused"]}
        return {"facts": found.get("facts", {})} | summary(found, base, self.suite)

    def write(self, part: str, out: Path) -> None:
        """Measure `part` and write its record."""
        values = PARTS[part](self)
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
        command = "python -m studies.encoder_methods.measure NAME=DIR ... --data DATA --out RECORDS"
        write_record(out / f"encoder-{part}-{self.name}.json", f"encoder-{part}", command, record)


PARTS: dict[str, Callable[[Study], Result]] = {
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


def _named(encoder: str) -> tuple[str, Path]:
    name, equals, folder = encoder.rpartition("=")
    path = Path(folder)
    name = name if equals else path.resolve().name
    if not name or not folder or Path(name).name != name:
        raise UsageError(f"{encoder!r}: write NAME=FOLDER, the name without slashes")
    return name, path


@click.command()
@click.argument("encoders", nargs=-1, required=True, metavar="[NAME=]DIR...")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of the suite.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the records.")
@click.option("--parts", default=",".join(PARTS), show_default=True, help="Which, with commas between.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("build/encoder-methods"),
    show_default=True,
    help="Folder that a killed run goes on from.",
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of torch.")
@click.option("--quick", is_flag=True, help="The first encoder alone, on few rows: to see that all works.")
def main(encoders: Sequence[str], data: Path, out: Path, parts: str, work: Path, threads: int, quick: bool) -> None:
    """Write the records behind docs/methods-on-transformers.md."""
    chosen = parts.split(",")
    for part in chosen:
        if part not in PARTS:
            raise UnknownName("part", part, tuple(PARTS))
    folders = dict(_named(encoder) for encoder in (encoders[:1] if quick else encoders))
    torch.set_num_threads(threads)
    click.echo("reading the suite", err=True)
    suite = read_suite(data, _QUICK if quick else Limits())
    for name, folder in folders.items():
        study = Study(name, folder, suite, work / "quick" if quick else work, quick=quick)
        for part in chosen:
            study.write(part, out)


if __name__ == "__main__":
    main()
