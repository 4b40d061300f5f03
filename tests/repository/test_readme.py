"""Every command and every Python example of the README runs.

`bash` and `sh` blocks are commands, one a line; in `console` blocks the lines after `$ ` are. A block of either
kind, or of Python, is left out only by a comment right before it: `<!-- not run: REASON -->`. All run in one folder
that looks like the checkout, in the order of the README; each Python block is a program of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

COMMANDS = {"bash", "console", "sh"}
DATA = {"", "csv", "json", "text", "toml", "tsv"}
RUN = re.compile(r"(?:^|[|&;]\s*)(?:\.venv/bin/)?fieldrun\s")
NOT_RUN = re.compile(r"(?:make|git clone|cd|pip install|python3? -m venv|source|\.venv/bin/pip install)\b")
PREPARE = re.compile(r"(?:cat|echo|head|mkdir|printf)\s")
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[\w+-]*)[^\n]*$")
OPT_OUT = re.compile(r"<!--\s*not run:(?P<reason>.*?)-->", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, its text, the line it starts on, and why it is not run ("" when it is)."""

    language: str
    text: str
    line: int
    reason: str = ""


def blocks(markdown: str) -> list[Block]:
    """Every fenced block of `markdown`.

    Raises:
        ValueError: a block is not closed, or opts out without a reason.
    """
    lines = markdown.splitlines()
    found, at = [], 0
    while at < len(lines):
        opening = FENCE.match(lines[at])
        if not opening:
            at += 1
            continue
        start, body = at, []
        at += 1
        while at < len(lines) and lines[at].strip() != opening["fence"]:
            body.append(lines[at].removeprefix(opening["indent"]))
            at += 1
        if at == len(lines):
            raise ValueError(f"line {start + 1}: the block is not closed")
        at += 1
        found.append(
            Block(language=opening["language"], text="\n".join(body), line=start + 1, reason=_reason(lines[:start]))
        )
    return found


def _reason(before: list[str]) -> str:
    text = "\n".join(before).rstrip()
    last = text[text.rfind("<!--") :] if text.endswith("-->") else ""
    opt_out = OPT_OUT.fullmatch(last)
    if opt_out and not opt_out["reason"].strip():
        raise ValueError(f"line {len(before)}: an opt-out without a reason")
    return opt_out["reason"].strip() if opt_out else ""


def commands(block: Block) -> list[str]:
    """The shell commands of a block, continued lines joined."""
    text = re.sub(r"\\\n(?:> ?)?", "", block.text)
    lines = [line.strip() for line in text.splitlines()]
    if block.language == "console":
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line.removeprefix("$ ") for line in lines if line and not line.startswith("#")]


def kind(command: str) -> str:
    """Return "run" or "skip"; any other command is a `ValueError`."""
    if NOT_RUN.match(command):
        return "skip"
    if RUN.search(command) or PREPARE.match(command):
        return "run"
    raise ValueError(f"{command!r} is neither a fieldrun command nor one that this test knows how to leave out")


def run_blocks(found: list[Block], checkout: Path) -> list[str]:
    """Run the blocks in `checkout`; return one line of text for each that failed."""
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    failures = []
    for block in found:
        if block.reason:
            continue
        programs: list[list[str]] = []
        if block.language in COMMANDS:
            programs = [["bash", "-euo", "pipefail", "-c", line] for line in commands(block) if kind(line) == "run"]
        elif block.language == "python":
            programs = [[sys.executable, "-c", block.text]]
        for program in programs:
            result = subprocess.run(
                program,
                cwd=checkout,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                timeout=180,
                check=False,
            )
            if result.returncode:
                failures.append(f"README line {block.line}: {program[-1]!r} exits {result.returncode}: {result.stderr}")
    return failures


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A folder of links to the entries of the checkout, so that examples find its files and write elsewhere."""
    left_out = {".git", ".venv", "build", "dist"}
    for path in repository.iterdir():
        if path.name not in left_out:
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


@pytest.mark.slow
def test_readme_runs(repository: Path, checkout: Path) -> None:
    found = blocks((repository / "README.md").read_text("utf-8"))
    run = [block for block in found if not block.reason]
    assert [line for block in run if block.language in COMMANDS for line in commands(block) if kind(line) == "run"]
    assert [block for block in run if block.language == "python"]
    failures = run_blocks(found, checkout)
    assert not failures, "\n".join(failures)


def test_readme_hides_no_command(repository: Path) -> None:
    for block in blocks((repository / "README.md").read_text("utf-8")):
        assert block.language in COMMANDS | DATA | {"python"}, f"line {block.line}: {block.language}"
        if block.language in DATA:
            hidden = [line for line in block.text.splitlines() if re.match(r"\s*(\$|fieldrun|make)\s", line)]
            assert not hidden, f"line {block.line}: commands belong in a console or bash block: {hidden}"


PLANTED = """
# Title

```bash
git clone https://example.org/x && cd x   # inline
make demo

# a comment
fieldrun --version \\
    --json
```

```console
$ echo "a great film" | fieldrun run reference \\
>     --task sst2
positive 0.99
$ make test
```

<!-- not run: trains for an hour -->

~~~sh
fieldrun distill
~~~

1. In a list:
   ```python
   print("yes")
   ```

```json
{"fieldrun": 1}
```
"""


def test_planted_blocks_are_found() -> None:
    found = blocks(PLANTED)
    assert [block.language for block in found] == ["bash", "console", "sh", "python", "json"]
    assert [block.reason for block in found] == ["", "", "trains for an hour", "", ""]
    assert found[3].text == 'print("yes")'
    assert commands(found[0])[1:] == ["make demo", "fieldrun --version     --json"]
    piped = 'echo "a great film" | fieldrun run reference     --task sst2'
    assert commands(found[1]) == [piped, "make test"]
    assert [kind(line) for line in commands(found[0])] == ["skip", "skip", "run"]
    assert kind(piped) == "run"


@pytest.mark.parametrize("command", ["curl https://example.org", "rm -rf x", "python train.py", "makefile"])
def test_an_unknown_command_is_refused(command: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        kind(command)


@pytest.mark.parametrize("text", ["```bash\nmake demo\n", "<!-- not run: -->\n```bash\nfieldrun x\n```\n"])
def test_a_broken_block_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        blocks(text)


def test_failures_are_reported(tmp_path: Path) -> None:
    text = "```python\nraise SystemExit(3)\n```\n```bash\nprintf x > out\ncat missing\n```\n"
    failures = run_blocks(blocks(text), tmp_path)
    assert [line.split(":")[0] for line in failures] == ["README line 1", "README line 4"]
    assert "exits 3" in failures[0]
    assert (tmp_path / "out").read_text() == "x"
