"""`fieldrun doctor`: what this machine has, and how to install what it lacks."""

from __future__ import annotations

from typing import Any

import click

from .options import bundle_argument, examples, json_option
from .output import one_line, put, put_json, put_table

__all__ = ["doctor"]


@click.command(short_help="Show what this machine has and lacks.", epilog=examples("fieldrun doctor"))
@bundle_argument
@json_option
def doctor(bundle: str, as_json: bool) -> None:
    """Show what this machine has, which engines and extras are ready, and whether the bundle loads.

    What is missing is shown with the command that installs it. The exit code is always 0.
    """
    import fieldrun

    facts = fieldrun.doctor(bundle).to_dict()
    if as_json:
        put_json(facts)
    else:
        _put(facts)


def _put(facts: dict[str, Any]) -> None:
    cpu, memory = facts["cpu"], facts["memory"]
    limit = "" if cpu["container_limit"] is None else f", container limit {cpu['container_limit']:g}"
    room = [f"{memory['total_mib']} MiB", f"{memory['available_mib']} MiB available"]
    if memory["container_limit_mib"] is not None:
        room.append(f"container limit {memory['container_limit_mib']} MiB")
    rows = [
        ("fieldrun", facts["fieldrun"] or "not installed as a package"),
        ("python", f"{facts['python']} ({facts['implementation']}, {facts['machine']})"),
        ("platform", facts["platform"]),
        ("device", facts["device"]),
        *_board(facts["board"]),
        ("gpu", _gpu(facts["nvidia"])),
        ("container", facts["container"]),
        ("cpu", cpu["model"] or "unknown"),
        ("cpus", f"{cpu['allowed']} of {cpu['processors']} allowed{limit}"),
        ("features", " ".join(cpu["features"]) or "unknown"),
        ("int8", _int8(cpu["int8"])),
        ("memory", ", ".join(room) if memory["total_mib"] is not None else "unknown"),
        ("packages", ", ".join(f"{name} {version or 'missing'}" for name, version in facts["packages"].items())),
    ]
    put_table([row for row in rows if row[1] is not None])
    put("")
    put_table([row for engine in facts["engines"] for row in _engine(engine)])
    put("")
    put_table([("extra", extra["name"], *_state(extra)) for extra in facts["extras"]])
    put("")
    bundle = facts["bundle"]
    state = f"loads with {bundle['engine']}: " if bundle["ready"] else "does not load: "
    put(one_line(f"bundle {bundle['path']} {state}{bundle['reason']}"))


def _board(board: dict[str, Any]) -> list[tuple[str, str | None]]:
    named = [board["module"], board["part"], board["soc"]]
    system = None if board["l4t"] is None else f"Jetson Linux {board['l4t']}"
    if board["jetpack"] or board["jetpack_series"]:
        system = f"{system or 'Jetson Linux'}, JetPack {board['jetpack'] or board['jetpack_series']}"
    mode = board["power_mode"]
    return [
        ("module", ", ".join(filter(None, named)) or None),
        ("system", system),
        ("power", mode and f"{mode['name']} (mode {'unknown' if mode['id'] is None else mode['id']})"),
    ]


def _gpu(nvidia: dict[str, Any]) -> str | None:
    named = (("driver", "driver"), ("CUDA", "cuda"), ("TensorRT", "tensorrt"), ("TensorRT-RTX", "tensorrt_rtx"))
    found = [f"{label} {nvidia[key]}" for label, key in named if nvidia[key]]
    if not nvidia["gpu"] and not nvidia["driver_library"] and not found:
        return None
    return ", ".join(found) or "NVIDIA, versions unknown"


def _int8(instructions: dict[str, bool] | None) -> str | None:
    if instructions is None:
        return None
    return " ".join(name for name, there in instructions.items() if there) or "no special instructions"


def _engine(engine: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for an engine that is ready, or one for each part that it lacks."""
    if engine["ready"]:
        return [("engine", engine["name"], "ready", engine["version"] or "")]
    rows = []
    for number, lack in enumerate(engine["missing"]):
        head = ("", "", "") if number else ("engine", engine["name"], "missing")
        rows.append((*head, ": ".join(filter(None, (lack["reason"], lack["command"])))))
    return rows


def _state(extra: dict[str, Any]) -> tuple[str, str]:
    if not extra["ready"]:
        return "missing", extra["command"]
    return "ready", ", ".join(f"{package} {version}" for package, version in extra["packages"].items())
