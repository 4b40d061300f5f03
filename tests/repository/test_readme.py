"""What the README and the runnable pages show is what happens.

Their blocks are run as a reader would run them, in order, in one folder that looks like the clone:

- `bash` and `console` blocks are commands, one per line; in `console` blocks the lines after `$ `, and the lines below
  a command are its output.
- `pycon` blocks are Python with its output, `python` blocks are programs of their own.
- A block after `<!-- file: NAME -->` is written to that file first.
- A block after `<!-- not run: REASON -->` is left out, and so are `make`, `pip install` and the like.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("check-your-data", "index", "libraries", "own-labels", "packed-apps", "serving", "tutorial")
PAGES = ("README.md", *(f"docs/{name}.md" for name in NAMES))
ROWS = {"docs/own-labels.md": ("train.tsv", "dev.tsv", "more.tsv")}  # files that a page takes for granted
TEXTS = {"delivery": "my card has not arrived", "fees": "i was charged twice"}

COMMANDS = {"bash", "console"}
PROGRAMS = {"pycon", "python"}
DATA = {"csv", "json", "text", "toml"}
RUN = re.compile(r"(?:^|[|&;]\s*)fieldrun\s")
PREPARE = re.compile(r"(?:cat|printf)\s")
NOT_RUN = re.compile(r"(?:make|pip install|python3 -m venv|source)\b")
FENCE = re.compile(r"^(?P<fence>`{3,})(?P<language>\w*)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
NOTE = re.compile(r"<!-- (?P<kind>not run|file): (?P<value>[^\n]+) -->\n+$")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, its text, the line it starts on, and the comment before it."""

    language: str
    text: str
    line: int
    not_run: bool = False
    file: str = ""


def blocks(markdown: str) -> list[Block]:
    """Return every fenced block; `ValueError` for one that is not closed."""
    found, last = [], 0
    for match in FENCE.finditer(markdown):
        note = NOTE.search(markdown[last : match.start()])
        found.append(
            Block(
                language=match["language"],
                text=match["text"],
                line=markdown.count("\n", 0, match.start()) + 1,
                not_run=note is not None and note["kind"] == "not run",
                file=note["value"] if note is not None and note["kind"] == "file" else "",
            )
        )
        last = match.end()
    if len(re.findall(r"^`{3,}", markdown, re.MULTILINE)) != 2 * len(found):
        raise ValueError("a block is not closed")
    return found


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield each command of a block and the output that the page shows ("" where it shows none)."""
    if block.language == "bash":
        yield from ((line, "") for line in block.text.splitlines() if line and not line.startswith("#"))
        return
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def is_run(command: str) -> bool:
    """Whether a command is run; `ValueError` for one that this test does not know."""
    if RUN.search(command) or PREPARE.match(command):
        return True
    if NOT_RUN.match(command):
        return False
    raise ValueError(f"{command!r} is not a command that this test knows how to run or to leave out")


def run_page(markdown: str, folder: Path) -> list[str]:
    """Run the blocks of a page in `folder`; return one line of text for each that failed."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    failures = []

    def run(line: int, arguments: list[str], shown: str) -> None:
        ended = subprocess.run(
            arguments,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
        )
        if ended.returncode:
            failures.append(f"line {line}: {arguments[-1]!r} exits {ended.returncode}: {ended.stdout}{ended.stderr}")
        elif shown and not doctest.OutputChecker().check_output(shown, ended.stdout, FLAGS):
            failures.append(f"line {line}: {arguments[-1]!r} prints {ended.stdout!r}, the page shows {shown!r}")

    for block in blocks(markdown):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        if block.not_run:
            continue
        if block.language in COMMANDS:
            for command, shown in commands(block):
                if is_run(command):
                    run(block.line, ["bash", "-euo", "pipefail", "-c", command], shown)
        elif block.language == "pycon":
            (folder / "session.txt").write_text(block.text, encoding="utf-8")
            flags = ["-o", "ELLIPSIS", "-o", "NORMALIZE_WHITESPACE"]
            run(block.line, [sys.executable, "-m", "doctest", *flags, "session.txt"], "")
        elif block.language == "python":
            run(block.line, [sys.executable, "-c", block.text], "")
    return failures


@pytest.fixture
def clone(repository: Path, tmp_path: Path) -> Path:
    """A folder of links to the entries of the clone, so that examples find its files and write elsewhere."""
    for path in repository.iterdir():
        if path.name not in {".git", ".venv", "build", "dist"}:
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page: str, repository: Path, clone: Path) -> None:
    for name in ROWS.get(page, ()):
        rows = [
            f"{word}, {name} {text}\t{label}" for label, text in TEXTS.items() for word in ("please", "hello", "well")
        ]
        (clone / name).write_text("\n".join(["text\tlabel", *rows]) + "\n", "utf-8")
    text = (repository / page).read_text("utf-8")
    assert any(block.language in COMMANDS | PROGRAMS and not block.not_run for block in blocks(text))
    failures = run_page(text, clone)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_hides_no_command(page: str, repository: Path) -> None:
    for block in blocks((repository / page).read_text("utf-8")):
        assert block.language in COMMANDS | PROGRAMS | DATA, f"line {block.line}: {block.language}"
        if block.language in DATA:
            assert not re.search(r"^\s*(\$|fieldrun|make) ", block.text, re.MULTILINE), f"line {block.line}"
        elif block.language in COMMANDS and not block.not_run:
            assert [is_run(command) for command, _ in commands(block)]


def test_the_readme_is_read_in_two_minutes(repository: Path) -> None:
    text = (repository / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    for name in ("README.md", "docs/index.md"):
        (table,) = re.findall(r"<!-- table: summary -->\n(.*?)\n\n", (repository / name).read_text("utf-8"), re.DOTALL)
        assert 3 <= len(table.splitlines()) <= 10, "head, rule, at most eight rows"


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_headline_is_what_the_record_says(page: str, repository: Path) -> None:
    text = (repository / page).read_text("utf-8")
    found = re.search(r"(\d+) MB on disk, (\d+) us for a short text", text)
    assert found is not None
    record = json.loads((repository / "benchmarks" / "records" / "peers.json").read_text("utf-8"))
    subject = record["workloads"]["trec/test"]["subjects"]["fieldrun native"]
    assert int(found[1]) == round(subject["about"]["artifact"]["bytes"] / 1e6)
    assert int(found[2]) == pytest.approx(subject["single_stream"]["p50_us"], rel=0.1)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page: str, repository: Path) -> None:
    """The pages in docs are checked by their builder."""
    for link in re.findall(r"\]\(([^)]+)\)", (repository / page).read_text("utf-8")):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            assert (repository / name).is_file(), link
            assert not anchor or anchor in _anchors(repository / name), link


PLANTED = """
```bash
make demo
# a comment
fieldrun --version
```

```console
$ printf 'a\\nb\\n'
a
...
$ make test
```

<!-- not run: trains for an hour -->

```bash
fieldrun distill
```

<!-- file: x.csv -->
```csv
a,b
```
"""


def test_planted_blocks_are_found(tmp_path: Path) -> None:
    found = blocks(PLANTED)
    assert [(block.language, block.not_run, block.file) for block in found] == [
        ("bash", False, ""),
        ("console", False, ""),
        ("bash", True, ""),
        ("csv", False, "x.csv"),
    ]
    assert list(commands(found[0])) == [("make demo", ""), ("fieldrun --version", "")]
    assert list(commands(found[1])) == [("printf 'a\\nb\\n'", "a\n...\n"), ("make test", "")]
    assert [is_run(command) for command, _ in commands(found[0])] == [False, True]
    with pytest.raises(ValueError, match="not closed"):
        blocks("```bash\nmake demo\n")
    with pytest.raises(ValueError, match="rm -rf x"):
        is_run("rm -rf x")


def test_failures_are_reported(tmp_path: Path) -> None:
    text = "```python\nraise SystemExit(3)\n```\n```console\n$ printf x\ny\n$ cat no\n```\n```pycon\n>>> 1\n2\n```\n"
    failures = run_page(text, tmp_path)
    assert [re.sub(r"'.*", "", line, flags=re.DOTALL) for line in failures] == [
        *("line 1: ", "line 4: ", "line 4: ", "line 9: ")
    ]
    assert "exits 3" in failures[0]
    assert "the page shows" in failures[1]
