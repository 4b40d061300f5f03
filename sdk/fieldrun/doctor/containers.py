"""Whether this process runs in a container, and what its control groups allow it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from .installed import ROOT, read

__all__ = ["container", "container_cpus", "container_memory_mib"]

_NO_LIMIT_BYTES = 1 << 60  # cgroup v1 says "no limit" with a number near 2**63


def container(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the kind of container that this process runs in, None if there is no sign of one.

    The signs are the variable that Kubernetes sets, the one that podman, LXC and systemd-nspawn set for their first
    process, the files of docker and podman, and the names of the control groups.
    """
    if "KUBERNETES_SERVICE_HOST" in environment:
        return "kubernetes"
    first = (read(root / "proc/1/environ") or "").split("\0")
    named = dict(entry.partition("=")[::2] for entry in first).get("container") or environment.get("container")
    if named:
        return named
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    groups = read(root / "proc/self/cgroup") or ""
    hints = (("kubepods", "kubernetes"), ("docker", "docker"), ("libpod", "podman"), ("lxc", "lxc"))
    return next((kind for hint, kind in hints if f"/{hint}" in groups), None)


def container_memory_mib(root: Path = ROOT) -> int | None:
    """Return the smallest memory limit of this process's control groups in MiB, None without one."""
    texts = [read(folder / "memory.max") for folder in _cgroups(root, "")]
    texts += [read(folder / "memory.limit_in_bytes") for folder in _cgroups(root, "memory")]
    limits = [int(text) for text in texts if text is not None and text.strip().isdigit()]
    return min((limit // 2**20 for limit in limits if limit < _NO_LIMIT_BYTES), default=None)


def container_cpus(root: Path = ROOT) -> float | None:
    """Return the smallest CPU quota of this process's control groups in CPUs, None without one."""
    quotas = [(read(folder / "cpu.max") or "").split() for folder in _cgroups(root, "")]
    for folder in _cgroups(root, "cpu"):
        quotas.append(f"{read(folder / 'cpu.cfs_quota_us')} {read(folder / 'cpu.cfs_period_us')}".split())
    limits = [int(q[0]) / int(q[1]) for q in quotas if len(q) == 2 and q[0].isdigit() and q[1].isdigit() and int(q[1])]
    return min(limits, default=None)


def _cgroups(root: Path, controller: str) -> list[Path]:
    """Return the folders of a control group and its ancestors; controller "" is cgroup v2's one hierarchy."""
    base = root / "sys/fs/cgroup" / controller
    folders = [base]
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            inside = PurePosixPath(path.lstrip("/"))
            folders += [base / part for part in (inside, *inside.parents) if ".." not in part.parts]
    return folders
