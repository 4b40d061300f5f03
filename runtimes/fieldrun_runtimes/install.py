"""Put a bundle in the place of another one, whole and proven: `fieldrun.install`.

A copy onto a folder in use is a mixture of two bundles while it lasts. So the new bundle is written beside the place,
its answers are checked there, and the two folders are exchanged in one step. The old one is kept for `rollback`. What
has loaded the old bundle keeps answering from it until it loads again.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fieldrun.errors import BundleError, OutputExists, ParityError, StorageError
from fieldrun.formats.bundle import MANIFEST, REFERENCE_BUNDLE, Bundle
from fieldrun.formats.storage import exchange_folders, locked_folder, new_folder, write_bytes

from .verify import verify

__all__ = ["InstallReport", "install", "rollback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallReport:
    """What stands at `path` now: the bundle's name and the sha256 of its manifest.

    `previous` is the folder of the bundle that stood there before, None if there was none. `changed` is false when the
    bundle at `path` was this one already; then nothing was written. `max_abs_field` is how far the answers of
    `engine` on this machine are from those of the export; None if nothing was written.
    """

    path: Path
    name: str
    sha256: str
    changed: bool
    previous: Path | None
    engine: str | None
    max_abs_field: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self) | {
            "path": str(self.path),
            "previous": None if self.previous is None else str(self.previous),
        }


def install(
    bundle: str | Path, into: str | Path, *, engine: str = "auto", provider: str | None = None, threads: int = 1
) -> InstallReport:
    """Copy `bundle` to the folder `into`, check its answers there, and only then put it in place, in one step.

    A bundle at `into` is kept beside it, as `<into>.previous`, for `rollback`; one that was kept before is deleted.
    `engine`, `provider` and `threads` are what the answers are checked with, as for `verify`.

    Raises:
        BundleError, IntegrityError, SchemaTooNew: `bundle` is not what it says. Nothing was changed.
        ParityError: it does not give its golden values on this machine. Nothing was changed.
        OutputExists: `into` exists and is not a bundle, is a link, or is inside the installed package.
        StorageError: the folder cannot be written.
        UnknownName, MissingDependency, EngineError, UsageError: as `verify`.
    """
    source, place = Bundle.load(bundle), _place(into)
    sha256 = str(source.manifest.to_dict()["sha256"])
    kept = _kept(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {place.parent}: {error.strerror}; choose a writable place") from error
    with locked_folder(place.parent):
        if place.is_dir() and _sha256(place) == sha256:
            return _report(place, source, sha256, kept if kept.is_dir() else None)
        replaces = place.is_dir()
        with new_folder(place, replace=replaces, keep=kept) as folder:
            for name, data in source.contents.items():
                write_bytes(folder / name, data)
            found = verify(folder, engine=engine, provider=provider, threads=threads)
            if not found.passed:
                raise ParityError(
                    f"{bundle} does not give its golden values on this machine; {place} was not changed; "
                    "see 'fieldrun verify'"
                )
        proof = found.engines[0].engine, found.max_abs_field
        return _report(place, source, sha256, kept if replaces else None, *proof)


def rollback(into: str | Path) -> InstallReport:
    """Exchange the bundle at `into` with the one that the last `install` kept; a second call takes it back.

    Raises:
        BundleError, IntegrityError: there is no bundle to go back to, or it was changed. Nothing was changed.
        OutputExists: `into` is a link or not a bundle.
        StorageError: the folders cannot be exchanged.
    """
    place = _place(into)
    kept = _kept(place)
    if not kept.is_dir() or not place.is_dir():
        raise BundleError(
            f"there is no earlier bundle of {place}: install keeps one as {kept.name} when it replaces it"
        )
    with locked_folder(place.parent):
        before = Bundle.load(kept)
        exchange_folders(kept, place)
    return _report(place, before, str(before.manifest.to_dict()["sha256"]), kept, changed=True)


def _report(
    place: Path,
    bundle: Bundle,
    sha256: str,
    previous: Path | None,
    engine: str | None = None,
    gap: float | None = None,
    *,
    changed: bool = False,
) -> InstallReport:
    return InstallReport(
        path=place,
        name=bundle.manifest.name,
        sha256=sha256,
        changed=changed or engine is not None,
        previous=previous,
        engine=engine,
        max_abs_field=gap,
    )


def _place(into: str | Path) -> Path:
    place = Path(into).absolute()
    if not str(into) or str(into) == "reference" or place.resolve().is_relative_to(REFERENCE_BUNDLE.parents[1]):
        raise OutputExists(f"{into} is the bundle that comes with fieldrun; install to a folder of your own")
    if place.is_symlink():
        raise OutputExists(f"{into} is a link; give the folder that it leads to, {os.path.realpath(place)}")
    if os.path.lexists(place) and not (place / MANIFEST).is_file():
        raise OutputExists(f"{into} exists and is not a bundle; choose another folder or delete it first")
    return place


def _kept(place: Path) -> Path:
    return place.with_name(f"{place.name}.previous")


def _sha256(folder: Path) -> str | None:
    try:
        return str(Bundle.load(folder).manifest.to_dict()["sha256"])
    except BundleError:  # what stands there is damaged: it is replaced
        return None
