"""The card says what a checkpoint records about itself, and where it records nothing."""

from __future__ import annotations

import dataclasses

from tests.toy import toy_checkpoint

TOY = toy_checkpoint()


def test_the_card_says_what_is_known_and_what_is_not() -> None:
    card = TOY.card("cpu-int8", 12_345)
    for fact in ("# toy", "`cpu-int8`", "12,345 bytes", "Apache-2.0", f"{TOY.parameters():,}", "Not recorded."):
        assert fact in card
    interval = {"accuracy": 0.9, "n": 100, "ci95": [0.82, 0.95], "ece": 0.0312}
    graded = {"n": 50, "spearman": 0.8125, "spearman_64": 0.79}
    record = {
        "results": {
            "mood": {"student": {"report": interval}, "compressed_field": {"accuracy": 0.92}},
            "alike": {"student": {"held_out": graded}, "compressed_field": {"n": 50, "spearman": 0.875}},
        },
        "seconds": {"student": 120.0},
        "machine": {"threads": 2, "processor": "x86_64", "gpu": None},
        "texts": {"transfer": 5000},
        "recipe": {"name": "quick", "seed": 0},
    }
    provenance = {
        "teacher": {"name": "some-encoder", "finetuned": True, "sha256": {"model.safetensors": "ab" * 32}},
        "data": {"licences": {"mood": "CC0-1.0"}},
    }
    card = dataclasses.replace(TOY, record=record, provenance=provenance).card()
    for fact in (
        "a checkpoint",
        "90.0 (82.0 - 95.0)",
        "0.031",
        "92.0",
        "| alike | slice of train | 50 | Spearman's correlation 0.812 | | 0.875 |",
        "some-encoder, fine-tuned on the tasks",
        "abababab",
        "- mood: CC0-1.0",
        "`quick`",
    ):
        assert fact in card


def test_the_card_describes_the_network() -> None:
    network = next(line for line in TOY.card().splitlines() if line.startswith("| network |"))
    for fact in ("window [-1, 0, 2]", "[[-1, 0], [-2, -1, 0], [-2, 0]] in 61 rows", "mixer over 2 tokens to 20"):
        assert fact in network
    assert "pooled mean and maximum, hidden 24" in network
    assert "pooled maximum, hidden 0" in toy_checkpoint(mean=False, hidden=0).card()


def test_a_record_of_another_shape_is_no_error() -> None:
    for record, provenance in (
        ({"note": 1}, {"teacher": "mine"}),
        ({"results": []}, {"data": 3, "teacher": {"name": 1}}),
    ):
        card = dataclasses.replace(TOY, record=record, provenance=provenance).card()
        assert card.count("Not recorded.") == 4
