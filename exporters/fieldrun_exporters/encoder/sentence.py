"""Read what sentence-transformers does around a transformer: pooling, normalising, prompt, case and longest text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fieldrun.errors import CheckpointError
from fieldrun.formats.storage import read_json

from .settings import check_settings, read_object

__all__ = ["SENTENCE_FILES", "Sentence", "read_sentence"]

_MODULES = ("Transformer", "Pooling", "Normalize")
_OWN = "sentence_transformers."
_TRANSFORMER = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_TRANSFORMER_FILES = tuple(f"sentence_{name}_config.json" for name in _TRANSFORMER)
_POOLINGS = {"mean_tokens": "mean", "cls_token": "cls"}
_BESIDE = {
    "adapter_config.json": "an adapter is not applied: merge it into the weights with PEFT's merge_and_unload",
    "config_setfit.json": "SetFit's head is a pickle and is not imported: to import the encoder alone, delete this "
    "file, and fit a head on its fields with 'fieldrun fit'",
}

SENTENCE_FILES = ("modules.json", "config_sentence_transformers.json", *_TRANSFORMER_FILES)
"""The files that `read_sentence` reads beside `config.json` of the modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """How a text becomes a field around the transformer.

    `pooling` is `"mean"` or `"cls"`. `prompt` is written before every text, and `prompts` are all that the folder has,
    by name. `lower` says that texts become lower case whatever the tokenizer does. `max_tokens` is where the original
    cuts a text, None without a statement. `files` are the modules' configs that were read.
    """

    pooling: str = "mean"
    normalize: bool = False
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    lower: bool = False
    max_tokens: int | None = None
    files: tuple[str, ...] = ()


def read_sentence(folder: Path) -> Sentence:
    """Return what the files of sentence-transformers in `folder` say; the mean alone without them.

    Raises:
        CheckpointError: a module, a setting or a way of pooling that is not carried; names it and the next step.
    """
    for name, reason in _BESIDE.items():
        if (folder / name).exists():
            raise CheckpointError(f"{folder} has {name}. Next: {reason}")
    paths = _module_paths(folder)
    if not paths:
        return Sentence()
    where, shape = (f"{paths[name]}/config.json" if name in paths else "" for name in _MODULES[1:])
    settings = read_object(folder / where)
    check_settings(folder, where, settings, "Pooling")
    if shape:
        check_settings(folder, shape, read_object(folder / shape, optional=True), "Normalize")
    transformer, name = _transformer(folder)
    check_settings(folder, name, transformer, "sentence_bert_config.json")
    lower, longest = transformer.get("do_lower_case", False), transformer.get("max_seq_length")
    if type(lower) is not bool:
        raise CheckpointError(f"{folder}: {name} must have do_lower_case true or false, not {lower!r}")
    if longest is not None and (type(longest) is not int or longest < 3):
        raise CheckpointError(f"{folder}: {name} must have max_seq_length, 3 tokens or more, not {longest!r}")
    prompts, prompt = _prompts(folder)
    if prompt and settings.get("include_prompt", True) is not True:
        raise CheckpointError(
            f"{folder}: {where} has include_prompt {settings['include_prompt']!r}, which leaves the prompt {prompt!r} "
            "out of the pooling; only true is supported. Next: export the model to ONNX and give that folder to "
            "'fieldrun export', or set default_prompt_name to null in config_sentence_transformers.json to import the "
            "fields without a prompt"
        )
    return Sentence(
        pooling=_pooling(folder, where, settings),
        normalize="Normalize" in paths,
        prompt=prompt,
        prompts=prompts,
        lower=lower,
        max_tokens=longest,
        files=(where, shape) if shape else (where,),
    )


def _module_paths(folder: Path) -> dict[str, str]:
    """Return the modules' folders by kind; empty if the folder has no file of sentence-transformers."""
    if not (folder / "modules.json").is_file():
        left = [name for name in (*SENTENCE_FILES, "1_Pooling/config.json") if (folder / name).is_file()]
        if left:
            raise CheckpointError(f"{folder} has {left[0]} but no modules.json, which says whether to use it; copy it")
        return {}
    try:
        modules = read_json(folder / "modules.json")
        kinds = [(str(each["type"]), str(each["path"])) for each in modules]
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: modules.json is not a list of modules ({error}); restore it") from error
    for each in modules:
        check_settings(folder, "modules.json", each)
    names = tuple(kind.rsplit(".", 1)[-1] for kind, _ in kinds)
    if names not in (_MODULES, _MODULES[:2]) or not all(kind.startswith(_OWN) for kind, _ in kinds):
        named = ", ".join(name if kind.startswith(_OWN) else kind for name, (kind, _) in zip(names, kinds, strict=True))
        raise CheckpointError(
            f"{folder}: modules.json has {named}; only {', '.join(_MODULES)} of sentence-transformers is supported. "
            "Next: export the whole model to ONNX and give that folder to 'fieldrun export'"
        )
    paths = {name: path for name, (_, path) in zip(names, kinds, strict=True)}
    for path in paths.values():
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise CheckpointError(f"{folder}: modules.json has the path {path!r}, which leaves the folder")
    inner = paths["Transformer"]
    if PurePosixPath(inner) != PurePosixPath("."):
        raise CheckpointError(
            f"{folder}: modules.json has the Transformer in {inner!r}; only files beside modules.json are read. Next: "
            'move its files there, and set its path to ""'
        )
    return paths


def _pooling(folder: Path, where: str, settings: Mapping[str, Any]) -> str:
    prefix = "pooling_mode_"
    chosen = [name.removeprefix(prefix) for name, on in settings.items() if name.startswith(prefix) and on]
    if "pooling_mode" in settings:  # which is newer, and wins
        mode = settings["pooling_mode"]
        chosen = [str(each) for each in mode] if isinstance(mode, list) else [str(mode)]
    pooling = _POOLINGS.get(chosen[0], chosen[0]) if chosen else "mean"
    if pooling not in _POOLINGS.values() or len(chosen) > 1:
        raise CheckpointError(
            f"{folder}: {where} pools by {' and '.join(chosen)}; only mean_tokens or cls_token is supported. Next: "
            "export the model with its pooling to ONNX and give that folder to 'fieldrun export'"
        )
    return pooling


def _transformer(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the settings of the Transformer module and their file: the first that has any, as in the original."""
    for name in _TRANSFORMER_FILES:
        found = read_object(folder / name, optional=True)
        if found:
            return found, name
    return {}, _TRANSFORMER_FILES[0]


def _prompts(folder: Path) -> tuple[dict[str, str], str]:
    """Return all prompts by name, and the one that the original writes before every text."""
    where = "config_sentence_transformers.json"
    settings = read_object(folder / where, optional=True)
    check_settings(folder, where, settings)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise CheckpointError(f"{folder}: {where} must have prompts, an object of texts, not {prompts!r}")
    texts = {name: text or "" for name, text in prompts.items()}
    if default is not None and default not in texts:
        raise CheckpointError(
            f"{folder}: {where} has default_prompt_name {default!r}, which is not among its prompts; add that prompt, "
            "or set default_prompt_name to null"
        )
    return texts, "" if default is None else texts[default]
