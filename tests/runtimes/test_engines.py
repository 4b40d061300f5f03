"""Every engine against the NumPy reference and against each other: alone, in company, in every bucket, on threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fieldrun
from fieldrun.errors import EngineError, MissingDependency, UnknownName, UsageError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.storage import read_json
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import head_logits, pair_features, softmax
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.oracle import forward
from fieldrun.student.windows import pad_ids
from fieldrun_runtimes.engines import ENGINES, native_engine, open_engine
from fieldrun_runtimes.engines import onnxruntime_engine as ort_engine
from fieldrun_runtimes.engines.buckets import GraphEngine
from fieldrun_runtimes.engines.choice import choose_engine
from tests import toy
from tests.toy import WORDS

REAL = ("native", "numpy", "onnxruntime")
RNG = np.random.default_rng(3)
TEXTS = [" ".join(RNG.choice(WORDS, size=1 + i % 40)) for i in range(64)]


@pytest.fixture(scope="module")
def float_bundle(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fieldrun.export(toy_checkpoint, tmp_path_factory.mktemp("fp32") / "bundle", recipe="cpu-fp32").path


def ids_of(bundle: Path) -> list[list[int]]:
    """Token ids of TEXTS, with the tokenizer as the bundle has it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]


@pytest.mark.parametrize("name", REAL)
def test_the_float_bundle_is_the_reference(float_bundle: Path, toy_checkpoint: Path, name: str) -> None:
    source = Checkpoint.load(toy_checkpoint)
    field = forward(source.config, source.tensors, pad_ids(ids_of(float_bundle)), float64=True)
    with fieldrun.load(float_bundle, engine=name) as model:
        encoding = model.forward(TEXTS)
        np.testing.assert_allclose(encoding.field, field, rtol=0, atol=1e-5)
        logits = np.concatenate([head_logits(h, field) for h in source.heads if h.kind == "single"], axis=1)
        np.testing.assert_allclose(encoding.logits, logits, rtol=0, atol=1e-5)
        for head in source.heads:
            if head.kind == "single":
                texts: list[Any] = TEXTS
                expected = softmax(head_logits(head, field), head.temperature)
            else:
                texts = list(zip(TEXTS, TEXTS[::-1], strict=True))
                expected = softmax(head_logits(head, pair_features(field, field[::-1])), head.temperature)
            np.testing.assert_allclose(model.predict_proba(texts, head.name), expected, rtol=0, atol=1e-5)


def test_engines_agree_on_the_int8_bundle(toy_bundle: Path) -> None:
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    with fieldrun.load(toy_bundle, engine="numpy") as plain, fieldrun.load(toy_bundle, engine="onnxruntime") as ort:
        a, b = plain.forward(TEXTS), ort.forward(TEXTS)
        np.testing.assert_allclose(a.field, b.field, rtol=0, atol=1e-5)
        np.testing.assert_allclose(a.logits, b.logits, rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            plain.predict_proba(pairs, "same"), ort.predict_proba(pairs, "same"), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("name", REAL)
def test_a_padding_id_inside_a_text_cuts_nothing_off(float_bundle: Path, toy_checkpoint: Path, name: str) -> None:
    source = Checkpoint.load(toy_checkpoint)
    bundle, text = Bundle.load(float_bundle), [2, 9, 0, 17, 12, 3]
    field, _ = open_engine(name, bundle).run([text])
    expected = forward(source.config, source.tensors, pad_ids([text]), float64=True)
    np.testing.assert_allclose(field, expected, rtol=0, atol=1e-5)


def answers(name: str, bundle: Bundle, sequences: list[list[int]]) -> Iterator[tuple[list[int], Array, Array]]:
    """Texts and what an engine gives for them: alone, all together, and in every bucket, filled and with one text."""
    engine, everyone = open_engine(name, bundle), list(range(len(sequences)))
    for part in ([k] for k in everyone):
        yield part, *engine.run([sequences[k] for k in part])
    for part in (everyone, everyone[::-1]):
        yield part, *engine.run([sequences[k] for k in part])
    if isinstance(engine, GraphEngine):
        for bucket in engine.buckets:
            rows = [k for k in everyone if len(sequences[k]) <= bucket.length]
            for start in range(len(rows)):
                part = [rows[(start + k) % len(rows)] for k in range(bucket.batch)]
                for some in (part, part[:1]):
                    yield some, *engine.run_bucket([sequences[k] for k in some], bucket)


NO_MIXER: dict[str, Any] = {"mixer_kernel": 0, "mixer_width": 0}
STUDENTS: dict[str, dict[str, Any]] = {
    "no mean": {"mean": False},
    "no hidden layer": {"hidden": 0},
    "as shipped": {"mean": False, "hidden": 0, "offsets": (-2, -1, 0, 1, 2)},
    "no mixer": NO_MIXER,
    "four together": {"mixer_kernel": 4, "mixer_width": 9},
    "only the future": {"offsets": (0, 3), "ngrams": ((0, 1),)},
    "only the token": {"offsets": (0,), "ngrams": (), "ngram_buckets": 0, "mean": False, "hidden": 0, **NO_MIXER},
}


@pytest.mark.parametrize("student", STUDENTS)
def test_every_length_in_every_bucket_is_the_reference(tmp_path: Path, student: str) -> None:
    source = toy.toy_checkpoint(4, **STUDENTS[student])
    source.save(tmp_path / "c", dtype="float32")
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'schema = 1\npasses = ["fold"]\n[buckets]\nbatches = [1, 3]\nlengths = [4, 12]\n'
        "[parity]\nmin_cosine = 0.99999\nmax_abs = 1e-4\n"
    )
    texts = [" ".join(RNG.choice(WORDS, size=1 + i % 12)) + f" {i}" for i in range(40)]
    bundle = Bundle.load(fieldrun.export(tmp_path / "c", tmp_path / "b", recipe=recipe, calibration=texts).path)
    lengths = [1, 2, 3, 4, 5, 7, 8, 9, 11, 12]
    sequences = [RNG.integers(1, source.config.vocab_size, size=n).tolist() for n in lengths]
    expected = forward(source.config, source.tensors, pad_ids(sequences), float64=True)
    for name in REAL:
        for part, field, logits in answers(name, bundle, sequences):
            np.testing.assert_allclose(field, expected[part], rtol=0, atol=2e-5, err_msg=name)
            assert field.dtype == logits.dtype == np.float32
            assert (field.shape, logits.shape) == ((len(part), 32), (len(part), 6))


@pytest.mark.parametrize("layer", ["int8", "int8-weights"])
def test_int8_layers_give_the_same_in_every_engine_and_bucket(toy_checkpoint: Path, tmp_path: Path, layer: str) -> None:
    recipe = tmp_path / "int8.toml"
    recipe.write_text(
        'schema = 1\npasses = ["fold", "int8"]\n'
        f'[precision]\ntables = "int8"\nmixer = "{layer}"\nhidden = "{layer}"\noutput = "{layer}"\n'
        "[buckets]\nbatches = [1, 4]\nlengths = [8, 24]\n[parity]\nmin_cosine = 0.98\nmax_abs = 0.5\n"
    )
    short = [text for text in TEXTS if len(text.split()) <= 20]
    path = fieldrun.export(toy_checkpoint, tmp_path / "b", recipe=recipe, calibration=short).path
    golden = read_json(path / "golden.json")["texts"]  # whose activations lie on no rounding boundary
    found = []
    for name in REAL:
        with fieldrun.load(path, engine=name) as model:
            found.append(model.forward(golden))
    for other in found[1:]:
        np.testing.assert_allclose(other.field, found[0].field, rtol=0, atol=1e-5)
        np.testing.assert_allclose(other.logits, found[0].logits, rtol=0, atol=1e-5)


def test_the_null_engine_answers_zeros_in_the_right_shapes(toy_bundle: Path) -> None:
    with fieldrun.load(toy_bundle, engine="null") as model:
        encoding = model.forward(TEXTS)
        assert encoding.field.shape == (64, 32)
        assert encoding.logits.shape == (64, 6)
        assert not encoding.field.any()
        assert not encoding.logits.any()
        np.testing.assert_array_equal(model.predict_proba(TEXTS[:2], "mood"), np.full((2, 2), 0.5))
        np.testing.assert_array_equal(model.predict_proba([("a", "b")] * 70, "same"), np.full((70, 2), 0.5))


@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_a_field_does_not_depend_on_company_or_padding(float_bundle: Path, toy_bundle: Path, recipe: str) -> None:
    bundle = Bundle.load(float_bundle if recipe == "fp32" else toy_bundle)
    engine = open_engine("onnxruntime", bundle)
    assert isinstance(engine, GraphEngine)
    everyone = ids_of(bundle.path)
    for text in (everyone[0], everyone[3], everyone[4], everyone[11]):  # of odd and even lengths
        seen: list[Array] = []
        for bucket in bundle.manifest.buckets:
            if len(text) > bucket.length:
                continue
            others = [ids for ids in everyone if len(ids) <= bucket.length and ids != text]
            within = []
            for row in {0, bucket.batch // 2, bucket.batch - 1}:
                for company in (others, [text], others[::-1]):
                    chosen = [company[k % len(company)] for k in range(bucket.batch)]
                    chosen[row] = text
                    field, logits = engine.run_bucket(chosen, bucket)
                    within.append(np.concatenate([field[row], logits[row]]))
            for other in within[1:]:
                np.testing.assert_array_equal(other, within[0], err_msg=f"{bucket}: not the same bits")
            seen.append(within[0])
        assert len(seen) >= 4
        for other in seen[1:]:
            np.testing.assert_allclose(other, seen[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_alone_and_in_a_batch_of_64(float_bundle: Path, toy_bundle: Path, name: str, recipe: str) -> None:
    with fieldrun.load(float_bundle if recipe == "fp32" else toy_bundle, engine=name) as model:
        together = model.forward(TEXTS)
        alone = [model.forward([text]) for text in TEXTS]
        within = 1e-5 if name == "onnxruntime" else 0  # the others give the same bits
        np.testing.assert_allclose(np.concatenate([e.field for e in alone]), together.field, rtol=0, atol=within)
        np.testing.assert_allclose(np.concatenate([e.logits for e in alone]), together.logits, rtol=0, atol=within)
        order = np.random.default_rng(0).permutation(64)
        shuffled = model.forward([TEXTS[i] for i in order])
        np.testing.assert_array_equal(shuffled.field, together.field[order])


@pytest.mark.parametrize("name", [*REAL, "null"])
def test_threads_sharing_a_model_give_the_serial_answers(toy_bundle: Path, name: str) -> None:
    requests = [TEXTS[k : k + 1 + k % 9] for k in range(48)]
    with fieldrun.load(toy_bundle, engine=name) as serial:
        expected = [serial.forward(texts) for texts in requests]
        pairs = serial.predict_proba([(TEXTS[0], TEXTS[1])] * 9, "same")
    with fieldrun.load(toy_bundle, engine=name) as shared, ThreadPoolExecutor(8) as pool:
        for texts, found in zip(expected, pool.map(shared.forward, requests), strict=True):
            np.testing.assert_array_equal(found.field, texts.field)
            np.testing.assert_array_equal(found.logits, texts.logits)
        for scores in pool.map(lambda _: shared.predict_proba([(TEXTS[0], TEXTS[1])] * 9, "same"), range(16)):
            np.testing.assert_array_equal(scores, pairs)


@pytest.mark.parametrize("name", ["native", "onnxruntime"])
def test_more_threads_give_the_same_answers(toy_bundle: Path, name: str) -> None:
    texts = TEXTS * 3
    with fieldrun.load(toy_bundle, engine=name) as model:
        one = model.forward(texts)
    with fieldrun.load(toy_bundle, engine=name, threads=3) as model:
        for n in (1, 2, 47, 192):
            found = model.forward(texts[:n])
            within = 0 if name == "native" else 1e-5
            np.testing.assert_allclose(found.field, one.field[:n], rtol=0, atol=within)
            np.testing.assert_allclose(found.logits, one.logits[:n], rtol=0, atol=within)


def test_the_native_engine_starts_threads_only_for_batches(toy_bundle: Path) -> None:
    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("fieldrun")]

    before = len(ours())
    with fieldrun.load(toy_bundle, engine="native") as model:
        model.forward(TEXTS)
    with fieldrun.load(toy_bundle, engine="native", threads=3) as model:
        model.forward(TEXTS[:1])
        assert len(ours()) == before
        model.forward(TEXTS)
        assert before < len(ours()) <= before + 2


def test_threads_that_fail_say_so(toy_bundle: Path) -> None:
    engine = open_engine("native", Bundle.load(toy_bundle), 4)
    for wrong in (0, 50, 99):
        sequences = [[2, 9, 3]] * 100
        sequences[wrong] = []
        with pytest.raises(EngineError, match="a text has no token"):
            engine.run(sequences)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_starts_threads_of_its_own(toy_bundle: Path, unmeasured: dict[str, str]) -> None:
    program = (
        "import os, sys, fieldrun\n"
        "model = fieldrun.load(sys.argv[1], engine='native', threads=2)\n"
        "texts = ['a good film', 'rain'] * 40\n"
        "field = model.field(texts)\n"
        "child = os.fork()\n"
        "same = (model.field(texts) == field).all()\n"
        "if child == 0: os._exit(0 if same else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    environment = unmeasured | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-W", "ignore", "-c", program, str(toy_bundle)]
    subprocess.run(command, env=environment, timeout=60, check=True)


@pytest.mark.parametrize(("name", "provider"), [("numpy", None), ("tensorrt", None), ("onnxruntime", "cuda")])
def test_an_engine_of_one_thread_refuses_more(toy_bundle: Path, name: str, provider: str | None) -> None:
    with pytest.raises(UsageError, match=f"threads=4: the engine '{provider or name}' uses one CPU thread; leave"):
        fieldrun.load(toy_bundle, engine=name, provider=provider, threads=4)


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As installed without a C compiler."""
    monkeypatch.setattr(native_engine, "LIBRARY", Path("none.so"))
    native_engine.load_library.cache_clear()
    yield
    native_engine.load_library.cache_clear()


def test_auto_takes_what_was_compiled_here(toy_bundle: Path) -> None:
    with fieldrun.load(toy_bundle) as model:
        assert (model.engine, model.engine_reason) == ("native", "compiled here")


def test_without_a_compiler_the_native_engine_says_what_to_do(toy_bundle: Path, no_native: None) -> None:
    with pytest.raises(EngineError, match=r"not compiled: no C compiler .* install gcc and then fieldrun again"):
        fieldrun.load(toy_bundle, engine="native")


def test_a_library_of_another_machine_is_no_engine(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.so").write_bytes(b"\x7fELF of some other machine")
    monkeypatch.setattr(native_engine, "LIBRARY", tmp_path / "other.so")
    native_engine.load_library.cache_clear()
    with pytest.raises(EngineError, match=r"cannot be loaded: .*; install fieldrun again"):
        fieldrun.load(toy_bundle, engine="native")
    assert choose_engine(Bundle.load(toy_bundle), "auto", 1).name in ("numpy", "onnxruntime")
    native_engine.load_library.cache_clear()


def test_the_library_for_any_processor_gives_the_same(
    toy_bundle: Path, float_bundle: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the library for other processors")
    flags = ["-O2", "-std=gnu11", "-shared", "-fPIC", "-Wno-psabi", "-DFIELDRUN_PORTABLE"]
    source = repository / "runtimes" / "fieldrun_runtimes" / "native" / "native.c"
    subprocess.run([compiler, *flags, "-o", str(tmp_path / "any.so"), str(source), "-lm"], check=True)
    here = [fieldrun.load(bundle, engine="native").forward(TEXTS) for bundle in (toy_bundle, float_bundle)]
    monkeypatch.setattr(native_engine, "LIBRARY", tmp_path / "any.so")
    native_engine.load_library.cache_clear()
    for bundle, expected in zip((toy_bundle, float_bundle), here, strict=True):
        found = fieldrun.load(bundle, engine="native").forward(TEXTS)
        np.testing.assert_allclose(found.field, expected.field, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-5)
    native_engine.load_library.cache_clear()


@pytest.mark.parametrize("widest", [0, 1, 2])
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 256), min_size=1, max_size=80), seed=st.integers(0, 99))
def test_the_native_engine_gives_many_texts_what_each_gets_alone(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, widest: int, lengths: list[int], seed: int
) -> None:
    bundle, rng = Bundle.load(toy_bundle), np.random.default_rng(seed)
    engine = open_engine("native", bundle)
    vocabulary = bundle.manifest.network.vocab_size
    sequences = [rng.integers(1, vocabulary, length).tolist() for length in lengths]
    reference = open_engine("numpy", bundle).run(sequences)
    monkeypatch.setattr(native_engine, "_WIDEST", widest)
    together = engine.run(sequences)
    for row, ids in enumerate(sequences):
        for part, whole, expected in zip(engine.run([ids]), together, reference, strict=True):
            np.testing.assert_array_equal(part[0], whole[row])
            np.testing.assert_allclose(part[0], expected[row], atol=1e-5)


def test_the_native_engine_stays_within_its_arrays(toy_bundle: Path) -> None:
    engine = open_engine("native", Bundle.load(toy_bundle))
    field, _ = engine.run([[2, -5, 2**31 - 1, 10**6, 3]])  # no ids of this vocabulary
    assert np.isfinite(field).all()
    sequences: list[list[list[int]]] = [[[0]], [[]], [[5] * 257], [[2, 9, 3], []], [[2, 9, 3], [5] * 257]]
    for wrong in sequences:
        with pytest.raises(EngineError, match="a text has no token, or more than the largest bucket of 256 tokens"):
            engine.run(wrong)


def test_what_an_engine_returns_stays_after_the_next_call(toy_bundle: Path) -> None:
    for name in REAL:
        engine = open_engine(name, Bundle.load(toy_bundle))
        first = engine.run([[2, 9, 3]])
        kept = [part.copy() for part in first]
        engine.run([[2, 17, 3]])
        for part, copy in zip(first, kept, strict=True):
            np.testing.assert_array_equal(part, copy)


def test_without_the_native_engine_auto_measures(toy_bundle: Path, no_native: None) -> None:
    with fieldrun.load(toy_bundle) as model:
        assert model.engine in ("numpy", "onnxruntime")
        assert all(word in model.engine_reason for word in ("measured here", "onnxruntime", "numpy", "us a text"))
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        assert (model.engine, model.engine_reason) == ("numpy", "asked for")


def test_without_onnxruntime_auto_takes_numpy(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, no_native: None
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with fieldrun.load(toy_bundle) as model:
        assert (model.engine, model.engine_reason) == ("numpy", "onnxruntime is not installed")
        assert model.predict(["a film"], "mood")[0] in ("bad", "good")
    with pytest.raises(MissingDependency, match=r"pip install 'fieldrun\[ort\]'") as caught:
        fieldrun.load(toy_bundle, engine="onnxruntime")
    assert caught.value.exit_code == 3


class OtherProvider:
    """A session that ran off with another provider than the one asked for."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def get_providers(self) -> list[str]:
        return ["AzureExecutionProvider"]


def failing_session(*_: Any, **__: Any) -> None:
    raise RuntimeError("no kernel")


@pytest.mark.parametrize(
    ("session", "message"), [(OtherProvider, "it took.*Azure"), (failing_session, "cannot open b1-l.*no kernel")]
)
def test_a_session_that_is_not_what_was_asked_for(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, no_native: None, session: Any, message: str
) -> None:
    monkeypatch.setattr(ort_engine.import_onnxruntime(), "InferenceSession", session)
    with fieldrun.load(toy_bundle, engine="onnxruntime") as model, pytest.raises(EngineError, match=message) as caught:
        model.field(["a film"])
    assert caught.value.exit_code == 9
    choice = choose_engine(Bundle.load(toy_bundle), "auto", 1)
    assert choice.name == "numpy"
    assert "onnxruntime cannot run here" in choice.reason


def test_auto_on_several_threads_leaves_numpy_out(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, no_native: None
) -> None:
    with fieldrun.load(toy_bundle, threads=2) as model:
        assert (model.engine, model.engine_reason) == ("onnxruntime", "numpy runs on one thread")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="the engine 'numpy' uses one CPU thread"):
        fieldrun.load(toy_bundle, threads=2)


def test_a_text_beyond_every_bucket_is_refused(toy_bundle: Path) -> None:
    for sequences in ([[5] * 257], [[5] * 257, [5]]):
        with pytest.raises(EngineError, match="a text of 257 tokens exceeds the largest bucket of 256 tokens"):
            open_engine("onnxruntime", Bundle.load(toy_bundle)).run(sequences)


@pytest.mark.parametrize("name", ["torch", "", "ONNXRuntime", None])
def test_an_unknown_engine_lists_the_known_ones(toy_bundle: Path, name: Any) -> None:
    with pytest.raises(UnknownName, match="known: auto, native, null, numpy, onnxruntime") as caught:
        fieldrun.load(toy_bundle, engine=name)
    assert caught.value.exit_code == 2
    assert set(ENGINES) == {"native", "null", "numpy", "onnxruntime", "tensorrt", "tensorrt-rtx"}


def test_telemetry_is_off_before_onnxruntime_is_imported(toy_bundle: Path) -> None:
    program = (
        "import os, sys, importlib.abc\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'onnxruntime': print('telemetry', os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import fieldrun\n"
        "fieldrun.load(sys.argv[1], engine='onnxruntime').field(['a film'])\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment = kept | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        [sys.executable, "-c", program, str(toy_bundle)], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split("\n")[0] == "telemetry 1"
