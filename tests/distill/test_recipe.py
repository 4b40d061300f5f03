"""Recipes: the shipped ones, what their keys mean, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fieldrun.distill.recipe import FinetuneRecipe, PoolRecipe, SourceRecipe, TaskRecipe, load_recipe, recipe_names
from fieldrun.errors import RecipeError, UnknownName

SOURCE = "[[pool.sources]]\nfile = 'a.txt'\nlicence = 'CC0'\nattribution = 'B'\nweight = 2"


def test_shipped_recipes_load_and_are_json() -> None:
    assert recipe_names() == ("open", "quick", "reference")
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert json.loads(json.dumps(recipe.to_dict()))["student"]["offsets"] == list(recipe.student.offsets)
    assert load_recipe("quick").tasks == ()
    assert [task.name for task in load_recipe("reference").tasks][:2] == ["sst2", "trec"]


def test_a_recipe_file_needs_only_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("schema = 1\nteacher.layers = [0, 4]\nstudent.offsets = [0, 1]\n", "utf-8")
    recipe = load_recipe(path)
    assert (recipe.name, recipe.seed, recipe.licence) == ("mine", 0, "unstated")
    assert recipe.teacher.layers == (0, 4)
    config = recipe.student.config(vocab_size=100, max_tokens=7)
    assert (config.vocab_size, config.max_tokens, config.offsets, config.field_dim) == (100, 7, (0, 1), 256)
    assert recipe.finetune is None


def test_a_section_of_fine_tuning_is_enough_to_fine_tune(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("schema = 1\n[finetune]\nfrozen_layers = 0\n[[tasks]]\nname = 'a'\nsimilarity = 5\n", "utf-8")
    recipe = load_recipe(path)
    assert recipe.finetune == FinetuneRecipe(frozen_layers=0)
    assert recipe.tasks == (TaskRecipe(name="a", similarity=5, tune=1, tune_rows=None),)
    assert json.loads(json.dumps(recipe.to_dict()))["finetune"]["learning_rate"] == 5e-5


def test_a_pool_names_its_sources_and_what_is_held_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"schema = 1\n[pool]\nheld_back = ['b/*.tsv']\n{SOURCE}", "utf-8")
    source = SourceRecipe(file="a.txt", licence="CC0", attribution="B", weight=2)
    recipe = load_recipe(path)
    assert recipe.pool == PoolRecipe(sources=(source,), held_back=("b/*.tsv",))
    assert json.loads(json.dumps(recipe.to_dict()))["pool"]["sources"][0]["weight"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "schema None; this fieldrun reads schema 1"),
        ("schema = 2", "schema 2"),
        ("schema = ", "not valid TOML"),
        ("schema = 1\ncolour = 1", "unknown keys: colour"),
        ("schema = 1\nseed = 'x'", "seed must be"),
        ("schema = 1\nseed = -1", "seed must be"),
        ("schema = 1\nseed = 4294967296", "seed must be"),
        ("schema = 1\nlicence = 3", "name and licence must be strings"),
        ("schema = 1\nteacher = 3", r"\[teacher\] must be an object"),
        ("schema = 1\nteacher.depth = 3", r"\[teacher\] has unknown keys: depth"),
        ("schema = 1\nteacher.layers = 0", "teacher.layers must be an integer of at least 1"),
        ("schema = 1\nteacher.layers = 'all'", "teacher.layers must be an integer"),
        ("schema = 1\nteacher.layers = [1, 'x']", "teacher.layers must be an integer"),
        ("schema = 1\nteacher.max_tokens = 2", "teacher.max_tokens must be an integer of at least 4"),
        ("schema = 1\nteacher.dtype = 'int8'", "teacher.dtype must be auto"),
        ("schema = 1\npool = 3", r"\[pool\] must be an object"),
        ("schema = 1\npool.rows = 3", r"\[pool\] has unknown keys: rows"),
        ("schema = 1\npool.sources = 3", r"write \[\[pool.sources\]\], once per entry"),
        ("schema = 1\npool.held_back = ['a']", r"pool.sources must be a \[\[pool.sources\]\] for each file"),
        *(
            (f"schema = 1\n[pool]\nheld_back = {held}\n{SOURCE}", "pool.held_back must be a list of globs")
            for held in ("[]", "'a'", "[1]", "['/a']", "['']", "['.']", "['a/../../b']")
        ),
        (f"schema = 1\n[pool]\nheld_back = ['a']\n{SOURCE}\n{SOURCE}", "the source 'a.txt' twice"),
        *(
            (f"schema = 1\n[pool]\nheld_back = ['a']\n{SOURCE.replace(old, new)}", message)
            for old, new, message in (
                ("'a.txt'", "'../a.txt'", "must be the path of a file inside the data folder"),
                ("'a.txt'", "3", "must be the path of a file"),
                ("weight = 2", "weight = 0", "source 'a.txt': weight must be"),
                ("weight = 2", "weight = nan", "source 'a.txt': weight must be"),
                ("'CC0'", "' '", "source 'a.txt': licence must be a text that is not blank"),
                ("attribution = 'B'", "", "attribution"),
            )
        ),
        ("schema = 1\nfinetune = 3", r"\[finetune\] must be an object"),
        ("schema = 1\nfinetune.layers = 3", r"\[finetune\] has unknown keys: layers"),
        *(
            (f"schema = 1\nfinetune.{name} = {value}", f"finetune.{name} must be")
            for name, value in (
                ("rows", 0),
                ("tokens", "true"),
                ("checkpoint_steps", 0),
                ("max_tokens", 3),
                ("frozen_layers", -1),
                ("learning_rate", 0),
                ("head_learning_rate", "nan"),
                ("weight_decay", 2),
                ("dtype", "'half'"),
            )
        ),
        ("schema = 1\ncompressor.steps = 10", "compressor.steps must be an integer of at least 20"),
        ("schema = 1\ncompressor.batch = true", "compressor.batch must be"),
        ("schema = 1\ncompressor.learning_rate = 0", "compressor.learning_rate must be"),
        ("schema = 1\ncompressor.dropout = 1.0", "compressor.dropout must be"),
        ("schema = 1\ncompressor.task = -1", "compressor.task must be"),
        ("schema = 1\ncompressor.similarity = -1", "compressor.similarity must be"),
        ("schema = 1\ncompressor.prefixes = 64", "compressor.prefixes must be a list"),
        ("schema = 1\ncompressor.prefixes = [0]", "compressor.prefixes must be a list"),
        ("schema = 1\nstudent.offsets = [1]", "offsets must be distinct integers within"),
        ("schema = 1\nstudent.offsets = [0, [1]]", "offsets must be distinct integers within"),
        ("schema = 1\nstudent.ngrams = [[0]]", "ngrams must be lists of 2 to 4 distinct integers"),
        ("schema = 1\nstudent.ngrams = []", "ngrams and student.ngram_buckets must both be set"),
        ("schema = 1\nstudent.mixer_stride = 3", r"\[student\] has unknown keys: mixer_stride"),
        ("schema = 1\nstudent.mixer_kernel = 2", "mixer_kernel and student.mixer_width must both be set"),
        ("schema = 1\nstudent.mean = 1", "mean must be true or false"),
        ("schema = 1\nstudent.hidden = -1", "hidden must be a whole number"),
        ("schema = 1\nstudent.width = 'wide'", "width must be a positive integer"),
        ("schema = 1\nstudent.field_dim = 8", r"\[student\] has unknown keys: field_dim"),
        ("schema = 1\ntraining.epochs = 0", "training.epochs must be"),
        ("schema = 1\ntraining.learning_rate = nan", "training.learning_rate must be"),
        ("schema = 1\ntraining.held_out = 0.9", "training.held_out must be a number within 0.001..0.5"),
        ("schema = 1\ntraining.distill = 'x'", "training.distill must be"),
        ("schema = 1\ntraining.dtype = 'half'", "training.dtype must be"),
        ("schema = 1\ntraining.pair_rows = -1", "training.pair_rows must be"),
        ("schema = 1\ntraining.pairs = 'x'", "training.pairs must be"),
        ("schema = 1\ntasks = 3", r"write \[\[tasks\]\], once per entry"),
        ("schema = 1\n[[tasks]]\nreport = 'dev.tsv'", "is incomplete"),
        ("schema = 1\n[[tasks]]\nname = '../x'", r"cannot be named '\.\./x'"),
        ("schema = 1\n[[tasks]]\nname = 'a'\ntrain = 'train.tsv'", "train must be a list of file names"),
        ("schema = 1\n[[tasks]]\nname = 'a'\ntrain = []", "train must be a list of file names"),
        *(
            (f"schema = 1\n[[tasks]]\nname = 'a'\n{name} = {value}", f"task 'a': {name} must be")
            for name, value in (
                ("repeat", 0),
                ("phrases", 1),
                ("similarity", -1),
                ("similarity", "true"),
                ("augment", -1),
                ("augment", 0.5),
                ("tune", -1),
                ("tune_rows", 0),
            )
        ),
        ("schema = 1\n[[corpus]]\nfile = 'a'\nrows = 1\nmax_chars = 0", "corpus 'a': max_chars must be"),
        ("schema = 1\n[[tasks]]\nname = 'a'\n[[tasks]]\nname = 'a'", "the task 'a' twice"),
        ("schema = 1\n[[corpus]]\nfile = 'a'\nrows = 0", "corpus 'a': rows must be"),
        ("schema = 1\n[[corpus]]\nfile = 'a'\nrows = 1\ntasks = 'b'", "tasks must be a list"),
        ("schema = 1\n" + "[[corpus]]\nfile = 'a'\nrows = 1\n" * 2, "the corpus 'a' twice"),
    ],
)
def test_a_recipe_that_makes_no_sense(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownName, match=r"unknown recipe 'fast'; known: open, quick, reference, or the path of a \.toml"
    ):
        load_recipe("fast")
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(tmp_path / "none.toml")
