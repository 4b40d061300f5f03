"""The table of what the emulated ARM processors answered: numerics only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fieldrun_benchmarks.harness.record import read_record

__all__ = ["TABLES"]


def _arm_table(records: Path) -> str:
    record = read_record(records / "arm-emulation.json", "arm-emulation")
    lines = [
        "| Emulated processor | bundle | engine | golden texts | token ids | labels equal "
        "| largest difference of a field | of a probability |",
        "|---" * 8 + "|",
    ]
    for name, processor in record["processors"].items():
        bundles = {f"`{record['bundle']['name']}`": processor["engines"]}
        bundles |= {f"recipe `{recipe}`": engines for recipe, engines in processor.get("recipes", {}).items()}
        for bundle, engines in bundles.items():
            for engine, result in engines.items():
                ids = "equal" if result["tokens_equal"] else "differ"
                lines.append(
                    f"| {name} ({processor['boards']}) | {bundle} | `{engine}` | {result['texts']} | {ids} "
                    f"| {result['labels_equal']} of {result['labels']} | {result['max_abs_field']:.1e} "
                    f"| {result['max_abs_scores']:.1e} |"
                )
    guest, native = record["guest"], record["native"]
    packages = ", ".join(f"{name} {version}" for name, version in guest["packages"].items())
    tolerance = next(iter(processor["engines"].values()))["tolerance"]
    lines += [
        "",
        f"({record['conditions']['date']}; {record['emulator']}, Python {guest['python']} of {guest['machine']}, "
        f"{packages}; the native engine is {native['path']}, by {native['compiler']}. Every text alone and in every "
        f"bucket, against the bundle's golden values; at most {tolerance:.0e} passes. Emulated: this says nothing of "
        "speed, memory or power.)",
    ]
    return "\n".join(lines)


TABLES: dict[str, Callable[[Path], str]] = {"arm-emulation": _arm_table}
