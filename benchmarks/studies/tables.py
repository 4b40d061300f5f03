"""Render a page's tables from the committed records, and check that the page shows what they say.

python -m studies.tables README.md benchmarks/records            # rewrite; likewise docs/an1.md
python -m studies.tables README.md benchmarks/records --check    # exit 1 when they differ
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import click

from fieldrun.errors import FieldrunError
from fieldrun.formats.storage import write_bytes
from fieldrun_benchmarks.harness.record import read_record, where

from .an1 import tables as an1_report
from .arm import tables as arm_report
from .bulk import tables as bulk_report
from .encoder_methods import tables as encoder_methods_report
from .ladder import tables as ladder_report
from .peers import tables as peers_report
from .search import tables as search_report
from .tensorrt_build import tables as tensorrt_report

__all__ = ["main", "render"]


def _accuracy_table(records: Path) -> str:
    names = ("cpu-small", "cpu-int8", "cpu-fp32")
    shipped, int8, fp32 = (read_record(records / f"accuracy-{name}.json", "accuracy") for name in names)
    lines = [
        "| Task | n | `reference` (`cpu-small`), % (95 % interval) | `cpu-int8`, % | `cpu-fp32`, % | majority, % "
        "| calibration error |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, entry in shipped["tasks"].items():
        low, high = (100 * x for x in entry["ci95"])
        file, n = entry["file"].removesuffix(".tsv"), entry["n"]
        lines.append(
            f"| {file} | {n:,} | {100 * entry['accuracy']:.1f} ({low:.1f} - {high:.1f}) "
            f"| {100 * int8['tasks'][task]['accuracy']:.1f} | {100 * fp32['tasks'][task]['accuracy']:.1f} "
            f"| {100 * entry['majority']:.1f} | {entry['calibration_error']:.3f} |"
        )
    for name, cells in (
        ("mean", [f"{100 * record['mean_accuracy']:.2f}" for record in (shipped, int8, fp32)]),
        ("bundle, MB", [f"{record['artifact']['bytes'] / 1e6:.1f}" for record in (shipped, int8, fp32)]),
    ):
        lines.append(f"| {name} | | {' | '.join(cells)} | | |")
    similarity, rejection = shipped["similarity"], shipped["rejection"]
    by_dim = ", ".join(f"{value:.3f} ({dim}-d)" for dim, value in similarity["spearman"].items())
    lines += [
        "",
        f"Similarity, STS-B dev (n = {similarity['n']:,}), Spearman's correlation of cosine and grade: {by_dim}. "
        f"Telling CLINC150's {rejection['out_of_scope']} texts out of scope from the others (n = {rejection['n']:,}), "
        f"area under the ROC curve: {rejection['auroc']['rejection']:.3f} by `rejection`, "
        f"{rejection['auroc']['probability of its own label']:.3f} by the label that the task has for them.",
    ]
    return "\n".join(lines)


def _latency_table(records: Path) -> str:
    record = read_record(records / "latency.json", "latency")
    lines = [
        "| Text in, labels of all {n} single tasks out, batch 1, one thread | tokens | tokenizer alone, p50 "
        "| whole, p50 | p90 | ratio of p50 |".format(n=record["tasks"]),
        "|---|---|---|---|---|---|",
    ]
    for task, workload in record["workloads"].items():
        for engine in ("native", "onnxruntime", "numpy"):
            values = workload["engines"][engine]
            whole = values["text_to_labels"]
            lines.append(
                f"| {task}, `{engine}` | {workload['mean_tokens']:.0f} | {values['tokenizer']['p50_us']:.0f} us "
                f"| {whole['p50_us']:.0f} us | {whole['p90_us']:.0f} us | {values['ratio_p50']:.1f} |"
            )
    return "\n".join([*lines, "", where(record)])


def _cold_table(records: Path) -> str:
    record = read_record(records / "cold-start.json", "cold-start")
    lines = ["| Fresh process, start to exit | seconds | to imports only | peak memory |", "|---|---|---|---|"]
    for name, values in record["programs"].items():
        label = {
            "imports only": f"`{record['imports_only']}`",
            "every bucket": "every bucket run once, engine `onnxruntime`",
        }.get(name, f"first label, engine `{name}`")
        wall, ratio, peak = (values[key] for key in ("wall_s", "ratio_to_imports", "peak_rss_mib"))
        lines.append(f"| {label} | {wall:.2f} | {ratio:.2f} | {peak:.0f} MiB |")
    return "\n".join([*lines, "", where(record)])


def _trials_table(records: Path) -> str:
    record = read_record(records / "student-trials.json", "student-trials")
    lines = [
        "| Student | loss | SST-2 | TREC | BANKING77 | STS-B | MB | engine, 12 and 28 tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for trial in record["trials"]:
        accuracy = " | ".join(f"{100 * trial[task]['accuracy']:.1f}" for task in ("sst2", "trec", "banking77"))
        short, long = (f"{trial['engine_p50_us'][length]:.0f}" for length in ("12", "28"))
        lines.append(
            f"| {trial['name']} | {trial['loss']:.2f} | {accuracy} | {trial['stsb']['spearman']:.2f} "
            f"| {trial['weights_bytes'] / 1e6:.1f} | {short}, {long} us |"
        )
    return "\n".join([*lines, "", where(record)])


def _fit_heads_table(records: Path) -> str:
    record = read_record(records / "fit-heads.json", "fit-heads")
    lines = [
        "| Task | labels | n | examples | draws | `fit_head`, % | scikit-learn, % | difference, points |",
        "|---" * 8 + "|",
    ]
    for task, about in record["tasks"].items():
        name = f"{task}, unseen" if about["unseen"] else task
        for examples, runs in about["examples"].items():
            ours, theirs = ([100 * run[key]["accuracy"] for run in runs] for key in ("fit_head", "scikit_learn"))
            difference = sum(a - b for a, b in zip(ours, theirs, strict=True)) / len(runs)
            each = "all rows" if examples == "all" else f"{examples} a label"
            shown = (" / ".join(f"{value:.1f}" for value in values) for values in (ours, theirs))
            lines.append(
                f"| {name} | {about['labels']} | {about['n']:,} | {each} | {len(runs)} "
                f"| {' | '.join(shown)} | {difference:+.1f} |"
            )
    timed = record["timed"]
    lines += [
        "",
        f"{timed['labels']} labels from {timed['rows']:,} texts: {timed['median_s']:.2f} s, texts to head, one thread.",
        "",
        where(record),
    ]
    return "\n".join(lines)


_TABLES: dict[str, Callable[[Path], str]] = {
    "accuracy": _accuracy_table,
    "latency": _latency_table,
    "cold-start": _cold_table,
    "student-trials": _trials_table,
    "fit-heads": _fit_heads_table,
    **an1_report.TABLES,
    **arm_report.TABLES,
    **bulk_report.TABLES,
    **encoder_methods_report.TABLES,
    **ladder_report.TABLES,
    **peers_report.TABLES,
    **search_report.TABLES,
    **tensorrt_report.TABLES,
}


def render(text: str, records: Path) -> str:
    """Return `text` with every `<!-- table: NAME -->` ... `<!-- end -->` block rendered from `records`.

    Raises:
        FieldrunError: a block names an unknown table, or a record is missing.
    """

    def block(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in _TABLES:
            raise FieldrunError(f"unknown table {name!r}; known: {', '.join(_TABLES)}")
        return f"<!-- table: {name} -->\n{_TABLES[name](records)}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


@click.command()
@click.argument("document", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("records", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when the document is not what the records say.")
def main(document: Path, records: Path, check: bool) -> None:
    """Render the tables of DOCUMENT from RECORDS."""
    before = document.read_text("utf-8")
    after = render(before, records)
    if before == after:
        return
    if check:
        click.echo(f"{document} differs from its records; run this without --check", err=True)
        sys.exit(1)
    write_bytes(document, after.encode("utf-8"))


if __name__ == "__main__":
    main()
