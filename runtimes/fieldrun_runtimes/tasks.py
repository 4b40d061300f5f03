"""The tasks of a model: those of its graphs, and the heads that were attached to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from fieldrun.errors import BundleError, CheckpointError, HeadMismatch, NameTaken, UnknownName, UsageError
from fieldrun.formats.bundle import Bundle, TaskSpec
from fieldrun.heads.head import RESERVED, Head, attached_task

__all__ = ["Task", "Tasks"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One task, and its head unless that is in the graphs."""

    spec: TaskSpec
    head: Head | None

    def chosen(self, allow: Collection[str] | None, deny: Collection[str] | None) -> list[int]:
        """Return the positions of the labels that `allow` and `deny` leave.

        Raises:
            UnknownName: the task has no such label.
            UsageError: both are given, one is a string, or no label is left.
        """
        labels = self.spec.labels
        if allow is not None and deny is not None:
            raise UsageError("give labels to allow or labels to deny, not both")
        listed = labels if allow is deny else deny if allow is None else allow
        if listed is None or isinstance(listed, str):
            raise UsageError(f"labels must be a list; write [{listed!r}]")
        for label in listed:
            if label not in labels:
                raise UnknownName("label", label, labels)
        left = [i for i, label in enumerate(labels) if (label in listed) == (deny is None)]
        if not left:
            raise UsageError(f"no label of task {self.spec.name!r} is left")
        return left


class Tasks:
    """Tasks by name. Reading needs no lock: a change replaces the table, and never alters one that is in use."""

    def __init__(self, bundle: Bundle) -> None:
        specs = bundle.manifest.tasks
        self._field_dim = bundle.manifest.network.field_dim
        self._lock = threading.Lock()  # held while the table is replaced
        self._table = {spec.name: Task(spec=spec, head=None) for spec in specs if not spec.attached}
        if len(self._table) < len(specs):
            from fieldrun.heads.saved import read_heads

            self._table |= {name: _task_of(head) for name, head in read_heads(bundle).items()}

    def __iter__(self) -> Iterator[Task]:
        return iter(self._table.values())

    @property
    def attached(self) -> Mapping[str, Head]:
        """The heads that are not in the graphs, by name."""
        return MappingProxyType({task.spec.name: task.head for task in self if task.head is not None})

    def find(self, name: object) -> Task:
        """Return the task called `name`, or the only one for None."""
        table = self._table
        if name is None:
            if len(table) == 1:
                return next(iter(table.values()))
            if not table:
                raise UsageError("this model has no task; attach a head, see fieldrun.fit_head")
            raise UsageError(f"name the task: {', '.join(table)}")
        found = table.get(name) if isinstance(name, str) else None
        if found is None:
            raise UnknownName("task", name, list(table))
        return found

    def attach(self, head: Head, *, replace: bool) -> None:
        """Add the task of `head`; see `FieldModel.attach`."""
        try:
            task = _task_of(_checked(head, self._field_dim))
        except BundleError as error:  # a label that no bundle may have
            raise HeadMismatch(str(error)) from error
        if head.name in RESERVED:
            raise UsageError(f"the name {head.name!r} stands for all tasks; choose another name")
        with self._lock:
            taken = self._table.get(head.name)
            if taken is not None and taken.head is None:
                raise NameTaken(f"the task {head.name!r} is part of the exported bundle; choose another name")
            if taken is not None and not replace:
                raise NameTaken(f"a head {head.name!r} is attached; choose another name, or attach with replace=True")
            self._table = self._table | {head.name: task}

    def detach(self, name: str) -> Head:
        """Remove the task of an attached head; see `FieldModel.detach`."""
        with self._lock:
            heads = self.attached
            if name not in heads:
                raise UnknownName("attached head", name, list(heads))
            self._table = {key: task for key, task in self._table.items() if key != name}
            return heads[name]


def _task_of(head: Head) -> Task:
    return Task(spec=attached_task(head), head=head)


def _checked(head: Head, field_dim: int) -> Head:
    """Return a copy of `head` in float32 that nobody else can change; `HeadMismatch` when it does not fit."""
    if not isinstance(head, Head):
        raise HeadMismatch(f"attach takes a head, as fit_head returns it, not {type(head).__name__}")
    try:
        head.validate(field_dim)
        json.dumps(dict(head.about), allow_nan=False)
    except (AttributeError, CheckpointError, TypeError, ValueError) as error:
        raise HeadMismatch(f"{error}; train the head on the fields of this model") from error
    weight, bias = np.array(head.weight, np.float32, order="C"), np.array(head.bias, np.float32)
    weight.flags.writeable = bias.flags.writeable = False
    return replace(head, weight=weight, bias=bias)
