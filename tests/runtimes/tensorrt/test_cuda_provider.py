"""ONNX Runtime's CUDA provider: what is asked of it, against a stand-in that has its names and runs on the CPU.

`Stand` gives the real package's sessions and values another device; it refuses what the CUDA provider would refuse to
do in silence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import fieldrun
from fieldrun.errors import EngineError, UnknownName
from fieldrun_runtimes.engines import cuda_provider
from tests.runtimes.tensorrt import doubles

TEXTS = ["a good film", "the card did not work", "rain", "who wrote it ?", "it was very wet to day and all"]
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Stand:
    """What the engine uses of `onnxruntime`, with a GPU."""

    __version__ = "1.31.1"

    class SessionOptions(onnxruntime.SessionOptions):  # type: ignore[misc]
        """Options that remember the weights that were added."""

        added: tuple[Any, ...] = ([], [])

        def add_external_initializers(self, names: list[str], values: list[Any]) -> None:
            self.added = names, values

    def __init__(self) -> None:
        self.available, self.taken = [CUDA, CPU], [CUDA, CPU]
        self.settings: list[dict[str, str]] = []
        self.preloaded = 0
        self.OrtValue = self

    def preload_dlls(self) -> None:
        print("Failed to load libcudnn.so.9")  # as the package does, on stdout
        self.preloaded += 1

    def get_available_providers(self) -> list[str]:
        return self.available

    def InferenceSession(self, path: str, options: Any, *, providers: list[Any]) -> Any:  # noqa: N802
        ((name, settings),) = providers
        assert name == CUDA
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        assert self.preloaded, "the loader does not find CUDA's libraries where pip puts them"
        self.settings.append(settings)
        session = onnxruntime.InferenceSession(path, options_of(options), providers=[CPU])
        taken = self.taken

        class Session:
            io_binding, get_inputs, get_outputs = session.io_binding, session.get_inputs, session.get_outputs

            def get_providers(self) -> list[str]:
                return taken

            def run_with_iobinding(self, binding: Any) -> None:
                session.run_with_iobinding(binding)

        return Session()

    def ortvalue_from_numpy(self, array: Any, device: str = "cpu", ordinal: int = 0) -> Any:
        assert (device, ordinal) in (("cpu", 0), ("cuda", 0))
        return onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), "cpu", 0)


def options_of(options: Any) -> Any:
    """The same options without the one that forbids the CPU, on which the stand-in runs."""
    allowed = onnxruntime.SessionOptions()
    entry = "session.disable_quant_qdq"
    allowed.add_session_config_entry(entry, options.get_session_config_entry(entry))
    if options.added[0]:
        allowed.add_external_initializers(*options.added)
    return allowed


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    doubles.install(monkeypatch)
    found = Stand()
    monkeypatch.setattr(cuda_provider, "import_onnxruntime", lambda: found)
    return found


@pytest.mark.parametrize(("provider", "capture"), [("cuda", "0"), ("cuda-graph", "1")])
def test_the_same_lines_and_answers_on_a_gpu(tiny: Path, stand: Stand, provider: str, capture: str) -> None:
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    with fieldrun.load(tiny, engine="numpy") as plain, fieldrun.load(tiny, provider=provider) as model:
        assert (model.engine, model.engine_reason) == ("onnxruntime", f"asked for on {provider}")
        for texts in ([TEXTS[0]], TEXTS):
            np.testing.assert_allclose(model.field(texts), plain.field(texts), rtol=0, atol=1e-4)
        first = model.field(TEXTS[:1])
        kept = first.copy()
        model.field(TEXTS[1:2])
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_allclose(
            model.predict_proba(pairs, "same"), plain.predict_proba(pairs, "same"), rtol=0, atol=1e-4
        )
    expected = {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": capture}
    assert stand.settings
    assert all(settings == expected for settings in stand.settings)


def test_an_onnxruntime_without_cuda_says_what_to_install(tiny: Path, stand: Stand) -> None:
    stand.available = [CPU]
    with pytest.raises(EngineError, match=r"has no CUDA provider: .*pip install 'onnxruntime-gpu\[cuda") as caught:
        fieldrun.load(tiny, engine="onnxruntime", provider="cuda")
    assert caught.value.exit_code == 9


def test_loading_cuda_s_libraries_writes_no_answer(
    tiny: Path, stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    fieldrun.load(tiny, engine="onnxruntime", provider="cuda").close()
    assert (stand.preloaded, capsys.readouterr().out) == (1, "")


def test_a_session_that_fell_back_is_refused(tiny: Path, stand: Stand) -> None:
    stand.taken = [CPU]
    with (
        fieldrun.load(tiny, engine="onnxruntime", provider="cuda") as model,
        pytest.raises(EngineError, match=rf"asked ONNX Runtime for {CUDA}, it took \['{CPU}'\]"),
    ):
        model.field(TEXTS)


def test_no_driver_is_seen_first(tiny: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch, gpu=None)
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        fieldrun.load(tiny, engine="onnxruntime", provider="cuda")
    assert not stand.settings


def test_a_bundle_for_the_cpu_names_a_recipe(toy_bundle: Path, stand: Stand) -> None:
    with pytest.raises(EngineError, match=r"no graphs that ONNX Runtime can run whole on a GPU; .*jetson-orin-int8"):
        fieldrun.load(toy_bundle, engine="onnxruntime", provider="cuda")


def test_an_unknown_provider_lists_the_known_ones(toy_bundle: Path) -> None:
    with pytest.raises(UnknownName, match="unknown provider 'rocm'; known: cpu, cuda, cuda-graph"):
        fieldrun.load(toy_bundle, engine="onnxruntime", provider="rocm")


def test_the_cpu_by_name(toy_bundle: Path) -> None:
    with fieldrun.load(toy_bundle, provider="cpu") as named, fieldrun.load(toy_bundle, engine="onnxruntime") as plain:
        np.testing.assert_array_equal(named.field(TEXTS), plain.field(TEXTS))
