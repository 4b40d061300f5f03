"""The bundle folder: a changed byte anywhere, or a manifest that makes no sense, is refused in one line before use."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fieldrun
from fieldrun.errors import BundleError, IntegrityError, SchemaTooNew, UnknownName
from fieldrun.formats import bundle as module
from fieldrun.formats.bundle import MANIFEST, Bundle, Manifest, Network, resolve_bundle, seal
from fieldrun.formats.storage import read_json, sha256_file, write_json
from fieldrun.formats.tensors import Array, read_tensors, write_tensors


@pytest.fixture
def folder(toy_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the toy bundle, to be damaged."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = read_json(path)
    change(value)
    path.write_text(json.dumps(seal(value) if "sha256" in value else value))


def rehash(folder: Path) -> None:
    """Make the manifest agree with the files, so that only what they hold is wrong."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in files_of(folder)
    }
    edit(folder / MANIFEST, lambda manifest: manifest.update(files=files))


def refused(folder: Path, kind: type[BundleError] = BundleError, *, engine: str = "numpy") -> str:
    """The message of the refusal, the same for every way in."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(kind) as caught:
        fieldrun.load(folder, engine=engine)
    with pytest.raises(kind):
        fieldrun.verify(folder, engine=engine)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert caught.value.exit_code == 6
    assert "\n" not in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return message


def test_the_manifest_survives_json(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(toy_bundle)
    write_json(tmp_path / MANIFEST, bundle.manifest.to_dict())
    assert Manifest.read(tmp_path / MANIFEST) == bundle.manifest
    assert bundle.total_bytes() == sum(path.stat().st_size for path in toy_bundle.iterdir())
    assert set(bundle.manifest.files) == set(files_of(toy_bundle))


def test_a_manifest_that_was_edited_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_text("utf-8")
    assert '"good"' in text
    (folder / MANIFEST).write_text(text.replace('"good"', '"gold"'), "utf-8")
    assert "was changed after the export" in refused(folder, IntegrityError)


def test_tasks_are_found_by_name(toy_bundle: Path) -> None:
    manifest = Bundle.load(toy_bundle).manifest
    assert [manifest.task(task.name) for task in manifest.tasks] == list(manifest.tasks)
    for name in ("moods", "", None, ["mood"]):
        with pytest.raises(UnknownName, match=r"unknown task .*; known: mood, intent, same") as caught:
            manifest.task(name)
        assert caught.value.exit_code == 2


NETWORK = Network(
    vocab_size=50,
    width=4,
    shifts=(-2, 0, 1),
    mixer_kernel=0,
    mixer_width=0,
    mean=True,
    hidden=0,
    field_dim=8,
    parameters=1,
)


@given(
    shifts=st.sets(st.integers(-8, 8)).map(lambda some: tuple({*some, 0})),
    texts=st.lists(st.lists(st.integers(1, 49), min_size=1, max_size=9), min_size=1, max_size=4),
    more=st.integers(0, 5),
    empty=st.integers(0, 3),
)
def test_a_frame_holds_every_token_where_each_shift_finds_it(
    shifts: tuple[int, ...], texts: list[list[int]], more: int, empty: int
) -> None:
    network = dataclasses.replace(NETWORK, shifts=shifts)
    left, right = network.margins
    assert (left, right) == (-min(shifts), max(shifts))
    length = max(len(text) for text in texts) + more
    frame = network.frame(texts, len(texts) + empty, length)
    assert frame.dtype == np.int32
    assert frame.shape == (len(texts) + empty, left + length + right)
    for row, text in zip(frame, texts, strict=False):
        for t in range(length):
            for shift in shifts:
                assert row[left + t + shift] == (text[t + shift] if 0 <= t + shift < len(text) else 0)
    for row in frame[len(texts) :]:
        assert row.tolist() == frame[0].tolist(), "a row without a text would have no token"


def test_every_file_is_checked(folder: Path) -> None:
    for name in files_of(folder):
        whole = (folder / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 3] ^= 4
        for damaged in (whole[:-1], b"", bytes(flipped), whole + b"\0"):
            (folder / name).write_bytes(damaged)
            assert name in refused(folder, IntegrityError)
        (folder / name).unlink()
        assert f"lacks {name}" in refused(folder, IntegrityError)
        (folder / name).mkdir()
        refused(folder, IntegrityError)
        (folder / name).rmdir()
        (folder / name).write_bytes(whole)
    Bundle.load(folder)


def test_swapped_files_are_seen(folder: Path) -> None:
    (folder / "b1-l16.onnx").rename(folder / "x")
    (folder / "b1-l32.onnx").rename(folder / "b1-l16.onnx")
    (folder / "x").rename(folder / "b1-l32.onnx")
    assert "b1-l" in refused(folder, IntegrityError)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "weights.safetensors", tmp_path / "weights")
    (folder / "weights.safetensors").symlink_to(tmp_path / "weights")
    assert "weights.safetensors is a link to a file outside the folder" in refused(folder, IntegrityError)


def test_a_linked_bundle_folder_is_fine(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert Bundle.load(tmp_path / "link").path == folder.resolve()  # a link that is switched later changes nothing


def test_an_unreadable_file_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fieldrun.formats.integrity.read_bytes", denied)
    assert "Permission denied" in refused(folder, IntegrityError)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"3", b"{}", pickle.dumps({"schema": 1})])
def test_a_manifest_that_is_not_one_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert MANIFEST in refused(folder)
    (folder / MANIFEST).unlink()
    assert "it is not a bundle" in refused(folder)


def test_a_newer_schema_asks_for_an_upgrade(folder: Path) -> None:
    edit(folder / MANIFEST, lambda manifest: manifest.update(schema=module.SCHEMA + 1, more="keys"))
    assert "pip install --upgrade fieldrun" in refused(folder, SchemaTooNew)


STEPS = ("mixer_kernel", "mixer_width", "hidden")


def changed_network(name: str, value: Any, manifest: dict[str, Any]) -> None:
    """Set one fact of the network."""
    manifest["network"][name] = value


def names(name: str) -> Callable[[dict[str, Any]], object]:
    """A manifest that calls its tokenizer `name`."""
    return lambda m: m["files"].update({name: m["files"].pop("tokenizer.json")})


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(colour="red"),
        lambda m: m.pop("licence"),
        lambda m: m.update(schema=0),
        lambda m: m.update(schema=None),
        lambda m: m.update(files=[]),
        lambda m: m["files"].pop("CARD.md"),
        lambda m: m["files"].update({"more.bin": m["files"]["CARD.md"]}),
        lambda m: m["files"].update({"CARD.md": {"bytes": "1", "sha256": ""}}),
        *(names(name) for name in ("../tokenizer.json", "/tokenizer.json", "a/../../x", "C:x", "a\\b", "", "x//y")),
        lambda m: m.update(buckets=[]),
        lambda m: m.update(buckets=3),
        lambda m: m.update(buckets=["b1-l16.onnx"]),
        lambda m: m["buckets"].pop(),
        lambda m: m["buckets"].append(m["buckets"][0]),
        lambda m: m["buckets"][0].update(batch=0),
        lambda m: m["buckets"][0].update(batch=2),
        lambda m: m["buckets"][0].update(graph=["b1-l16.onnx"]),
        lambda m: m["buckets"][0].update(graph="../b1-l16.onnx"),
        lambda m: m.update(pair_graphs=[]),
        lambda m: m.update(pair_graphs={"one": "pair-b1.onnx"}),
        lambda m: m.update(pair_graphs={}),
        lambda m: m.update(tasks=None),
        lambda m: m["tasks"][0].update(name=["mood"]),
        lambda m: m["tasks"][0].update(name=m["tasks"][1]["name"]),
        lambda m: m["tasks"][0].update(kind="triple"),
        lambda m: m["tasks"][0].update(labels="ab"),
        lambda m: m["tasks"][0].update(labels=[1, 2]),
        lambda m: m["tasks"][0].update(start=-1),
        lambda m: m["tasks"][0].update(temperature=0),
        lambda m: m["tasks"][0].update(temperature=None),
        lambda m: m["tasks"][0].update(colour=1),
        lambda m: m.update(network=[]),
        lambda m: m["network"].update(width=0),
        lambda m: m["network"].update(shifts="-101"),
        lambda m: m["network"].update(shifts=[-1, 1]),
        lambda m: m["network"].update(shifts=[0, 0.5]),
        lambda m: m["network"].update(mixer_kernel=3),
        *(functools.partial(changed_network, name, value) for name in STEPS for value in (-1, 2.0, "2", None)),
        lambda m: m["network"].update(mixer_kernel=0),
        lambda m: m["network"].update(mixer_width=0),
        *(functools.partial(changed_network, "mean", value) for value in (0, "yes", None)),
        lambda m: m["network"].pop("hidden"),
        lambda m: m.update(recipe="cpu-int8"),
        *(
            functools.partial(dict.update, golden_tolerance=value)
            for value in ("small", None, 0, -1e-5, float("nan"), float("inf"), 10**400)
        ),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(folder: Path, change: Any) -> None:
    edit(folder / MANIFEST, change)
    refused(folder)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(folder: Path, name: str) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        first = manifest["buckets"][0]
        manifest["files"][name] = manifest["files"].pop(first["graph"])
        first["graph"] = name

    edit(folder / MANIFEST, rename)
    refused(folder, BundleError if "\0" in name else IntegrityError)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("table"),
        lambda tensors: tensors.pop("table.scale"),
        lambda tensors: tensors.pop("score.weight"),
        lambda tensors: tensors.pop("mixer.weight"),
        lambda tensors: tensors.pop("hidden.weight"),
        lambda tensors: tensors.pop("hidden.bias"),
        lambda tensors: tensors.pop("output.bias"),
        lambda tensors: tensors.pop("rows.coef"),
    ],
)
def test_weights_without_a_tensor_are_refused_although_their_hash_is_right(folder: Path, change: Any) -> None:
    tensors: dict[str, Array] = {n: np.array(t) for n, t in read_tensors(folder / "weights.safetensors").items()}
    change(tensors)
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").write_bytes(write_tensors(tensors))
    rehash(folder)
    assert "weights.safetensors cannot be used" in refused(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", pickle.dumps([1])])
def test_a_file_of_another_kind_is_refused_although_its_hash_is_right(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    rehash(folder)
    assert name in refused(folder)


@pytest.mark.parametrize("path", ["nowhere", "x" * 5000, "a\0b", __file__])
def test_no_bundle_there(path: str) -> None:
    with pytest.raises(BundleError, match="fieldrun export"):
        Bundle.load(path)


def test_reference_is_the_one_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "REFERENCE_BUNDLE", tmp_path / "inside")
    with pytest.raises(BundleError, match=r"the shipped bundle is not at .*inside"):
        Bundle.load("reference")
    (tmp_path / "inside").mkdir()
    assert resolve_bundle("reference") == tmp_path / "inside"
    (tmp_path / "reference").mkdir()
    assert resolve_bundle("reference") == tmp_path / "inside", "it is no bundle"
    (tmp_path / "reference" / MANIFEST).touch()
    with pytest.warns(UserWarning, match=r"is the shipped bundle; write \./reference for the folder here"):
        assert resolve_bundle("reference") == tmp_path / "inside"
    assert resolve_bundle("./reference") == resolve_bundle(Path("reference")) == Path("reference")
