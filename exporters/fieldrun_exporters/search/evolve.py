"""The evolution of candidates: for every budget, children of the candidate with the nearest fields (EvoPress)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fieldrun.formats.progress import Progress

from .space import Levels, Space
from .state import State

__all__ = ["evolve"]


def evolve(
    space: Space,
    state: State,
    report: Progress,
    *,
    seed: int,
    children: int,
    generations: int,
    limit: int | None = None,
    scope: str = "",
) -> tuple[list[Levels], dict[Levels, float]]:
    """Return the front, smallest first, and the error of every candidate seen.

    `limit`, in bytes, is one more budget beside the sizes of the uniform candidates. `state` keeps what was seen for
    each budget, under names that begin with `scope`, so that no budget is searched twice.
    """
    top = [len(space.levels[part]) - 1 for part in space.parts]
    smallest, largest = space.size(tuple(top)), space.size((0,) * len(top))
    plain = {space.size(levels) for levels in space.uniform(dense=0)}
    budgets = sorted(size for size in plain if smallest < size < largest)  # where a uniform recipe must be beaten
    budgets += [limit] if limit is not None and smallest <= limit and limit not in budgets else []
    seen: dict[Levels, float] = {}

    def judge(levels: Levels) -> float:
        if levels not in seen:
            seen[levels] = space.error(levels)
        return seen[levels]

    uniform = space.uniform()
    total = len(budgets) * generations
    for number, budget in enumerate(budgets):
        kept = state.values.get(f"{scope}budget {budget}")
        if kept is not None:
            seen |= {tuple(levels): error for levels, error in kept}
            report("compress", (number + 1) * generations, total)
            continue
        before = set(seen)
        fitting = [levels for levels in uniform if space.size(levels) <= budget]
        parent = min(fitting, key=judge)
        for generation in range(generations):
            rng = np.random.default_rng([seed, budget, generation])
            born = [_child(space, parent, top, budget, rng) for _ in range(children)]
            parent = min((parent, *born), key=judge)
            report("compress", number * generations + generation + 1, total)
        state.put(f"{scope}budget {budget}", [(list(levels), seen[levels]) for levels in seen if levels not in before])
    for levels in uniform:
        judge(levels)
    front: list[Levels] = []
    for levels in sorted(seen, key=lambda found: (space.size(found), seen[found])):
        if not front or seen[levels] < seen[front[-1]]:
            front.append(levels)
    return front, seen


def _child(space: Space, parent: Levels, top: Sequence[int], budget: int, rng: np.random.Generator) -> Levels:
    """Return `parent` with one to three parts at a better level, and others at a worse one until it fits."""
    child = list(parent)
    for _ in range(min(rng.integers(1, 4), rng.integers(1, 4))):
        better = [i for i, level in enumerate(child) if level > 0]
        if better:
            child[int(rng.choice(better))] -= 1
    while space.size(tuple(child)) > budget:
        worse = [i for i, level in enumerate(child) if level < top[i]]
        child[int(rng.choice(worse))] += 1
    return tuple(child)
