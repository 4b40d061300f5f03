"""The model card of a checkpoint or bundle, rendered from its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["render_card"]


def render_card(
    *,
    name: str,
    student: Mapping[str, Any],
    parameters: int,
    tasks: int,
    licence: str,
    provenance: Mapping[str, Any],
    record: Mapping[str, Any],
    recipe: str | None = None,
    weights_bytes: int | None = None,
) -> str:
    """Return the Markdown card of a student; with `recipe`, that of a bundle made with it.

    `student` is its shape as a JSON object. Accuracies are those of the trained checkpoint in float32, from its
    training record.
    """
    kind = f"a bundle made with the recipe `{recipe}`" if recipe else "a checkpoint"
    lines = [
        f"# {name}",
        "",
        f"A transformer-free text student, {kind}. It maps text to a {student['field_dim']}-d meaning field and, "
        f"through linear heads, to the labels of {tasks} tasks.",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {parameters:,} (trained form, heads included) |",
        f"| network | embedding {student['vocab_size']} x {student['embedding_dim']}, window "
        f"{list(student['offsets'])}, hashed n-grams at {[list(gram) for gram in student['ngrams']]} in "
        f"{student['ngram_buckets']} rows, width {student['width']}, mixer over {student['mixer_kernel']} tokens to "
        f"{student['mixer_width']}, pooled {'mean and maximum' if student['mean'] else 'maximum'}, hidden "
        f"{student['hidden']} |",
        f"| longest text trained on | {student['max_tokens']} tokens |",
        f"| teacher | {_told(_teacher, provenance)[0]} |",
        f"| licence of the weights | {licence} |",
    ]
    if weights_bytes is not None:
        lines.append(f"| weights file | {weights_bytes:,} bytes |")
    lines += ["", "## Accuracy", "", *_told(_accuracy, record), "", "## Training data", ""]
    lines += _told(_licences, provenance)
    lines += ["", "sha256 of every file is in the provenance of the manifest.", ""]
    lines += ["## Training", "", *_told(_training, record)]
    if "an1" in record:
        lines += ["", "## AN1's claims", "", *_told(_an1, record)]
    lines += [
        "",
        "## Limits",
        "",
        "English only. Trained on the sets above and no other domain; labels are those sets' labels. Sentence pairs",
        "are judged from two separate fields, which is weak for entailment. No bias or safety evaluation was made.",
        "",
    ]
    return "\n".join(lines)


def _told(render: Callable[[Mapping[str, Any]], list[str]], facts: Mapping[str, Any]) -> list[str]:
    """Return `render(facts)`, or a note for a checkpoint that lacks the facts or has them in another form."""
    try:
        return render(facts)
    except (AttributeError, KeyError, TypeError, ValueError):
        return ["Not recorded."]


def _teacher(provenance: Mapping[str, Any]) -> list[str]:
    teacher = provenance["teacher"]
    tuned = ", fine-tuned on the tasks" if teacher.get("finetuned") else ""
    return [f"{teacher['name']}{tuned}, model.safetensors sha256 {teacher['sha256']['model.safetensors'][:16]}..."]


def _licences(provenance: Mapping[str, Any]) -> list[str]:
    return [f"- {name}: {licence}" for name, licence in provenance["data"]["licences"].items()]


def _accuracy(record: Mapping[str, Any]) -> list[str]:
    lines = [
        "| Task | split | n | student, % (95 %) | calibration error | teacher's compressed field, % |",
        "|---|---|---|---|---|---|",
    ]
    for task, scores in record["results"].items():
        split = "report" if "report" in scores["student"] else "held_out"
        student, field = scores["student"][split], scores["compressed_field"]
        row = f"| {task} | {'dev/test' if split == 'report' else 'slice of train'} | {student['n']} "
        if "spearman" in student:
            row += f"| Spearman's correlation {student['spearman']:.3f} | | {field['spearman']:.3f} |"
        else:
            low, high = (100 * x for x in student["ci95"])
            row += f"| {100 * student['accuracy']:.1f} ({low:.1f} - {high:.1f}) | {student['ece']:.3f} "
            row += f"| {100 * field['accuracy']:.1f} |"
        lines.append(row)
    return [*lines, "", "Measured in float32 at the end of training; what an export changes is in its `report.json`."]


def _an1(record: Mapping[str, Any]) -> list[str]:
    """Return the lines that `studies.an1.card` made of its measurement."""
    return [str(line) for line in record["an1"]["card"]]


def _training(record: Mapping[str, Any]) -> list[str]:
    seconds, machine, texts = record["seconds"], record["machine"], record["texts"]
    phases = ", ".join(f"{phase} {value / 60:.0f} min" for phase, value in seconds.items())
    return [
        f"Recipe `{record['recipe']['name']}`, seed {record['recipe']['seed']}, {texts['transfer']:,} texts; {phases} "
        f"on {machine['threads']} threads of {machine['processor']}, GPU: {machine['gpu'] or 'none'}."
    ]
