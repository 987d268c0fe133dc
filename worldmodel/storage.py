"""Files that are either whole or not there: atomic folders with a manifest of hashes, read back without running code.

    write:    name.tmp-PID/ with files, fsync each; MANIFEST.json, fsync; fsync folder; rename to name; fsync parent
    replace:  name -> name.old-PID, then name.tmp-PID -> name, then remove name.old-PID
    remove:   name -> name.tmp-PID, then remove that

At every instant one complete version is `name` or `name.old-PID`: `read_folder` finds it, `recover` tidies up.
A folder without a valid manifest does not exist.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from worldmodel import codec, manifest
from worldmodel.errors import CorruptError, StorageError, UsageError
from worldmodel.lock import Lock, running
from worldmodel.manifest import MANIFEST, SCHEMA, sha256

__all__ = ["MANIFEST", "SCHEMA", "Lock", "exists", "read_file", "read_folder", "recover", "remove", "sha256", "sweep",
           "verify", "write_file", "write_folder"]  # fmt: skip

_LEFTOVER = re.compile(r"(?P<name>.+)\.(?:tmp|old)-\d+")
_REMEDY = {
    errno.ENOSPC: "free space there, or choose another folder",
    errno.EDQUOT: "the quota is used up: free space there, or choose another folder",
    errno.EFBIG: "the file-size limit was hit: raise it (ulimit -f), or choose another file system",
    errno.EROFS: "the file system is read-only: choose a folder you may write to",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
}
Path_ = str | os.PathLike[str]
T = TypeVar("T")


def write_folder(path: Path_, files: Mapping[str, Any]) -> dict[str, Any]:
    """Creates or replaces the folder `path` holding exactly `files`, atomically; returns its manifest.

    `files` maps plain file names to values: `.json` any JSON value without NaN, `.safetensors` dict[str, Tensor],
    `.npy` np.ndarray without objects, any other suffix bytes. An older `path` stays valid until the new is complete.

    Raises StorageError when the disk is full, too small or not writable (nothing is left behind, the old content
    stays), and UsageError for a value that cannot be stored.
    """
    path = Path(path)
    for name in files:
        if not manifest.plain(name):
            raise UsageError(f"{name!r} cannot be a file name in {path}: use letters, digits, dot, dash, underscore")
    folder = _sibling(path, "tmp")
    try:
        with _storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            recover(path)
            _preflight(path, sum(codec.size(value) for value in files.values()))
            os.mkdir(folder)
            entries = {name: _write(folder / name, codec.encode(name, value)) for name, value in files.items()}
            listing = manifest.make(entries)
            _write(folder / MANIFEST, codec.dumps(listing))
            _sync(folder)
            _publish(folder, path)
    except BaseException:
        _delete(folder)
        raise
    return listing


def read_folder(path: Path_, names: Iterable[str] | None = None, optional: Iterable[str] = ()) -> dict[str, Any]:
    """The verified content of a folder made by `write_folder`: file name -> value. `names` reads only those, and those
    of `optional` that are there.

    Safe on a folder from a stranger (no code runs) and while another process replaces the folder.
    Raises CorruptError naming the file, the expected and the actual hash; UsageError when there is no such folder.
    """
    wanted = None if names is None else list(names)
    welcome = list(optional)

    def read(folder: Path) -> dict[str, Any]:
        entries = manifest.entries(folder)
        for name in wanted or ():
            if name not in entries:
                held = ", ".join(entries) or "nothing"
                raise CorruptError(f"{folder} holds no {name}, it holds {held}; is it the right kind of folder?")
        chosen = entries if wanted is None else [*wanted, *(name for name in welcome if name in entries)]
        paths = {name: folder / name for name in chosen}
        return {n: codec.decode(p, manifest.read_bytes(p, entries[n]["sha256"])) for n, p in paths.items()}

    return _steady(Path(path), read)


def exists(path: Path_) -> bool:
    """Whether `read_folder(path)` would find a folder with a manifest, even one a killed writer left put aside."""
    try:
        return (_resolve(Path(path)) / MANIFEST).exists()
    except UsageError:
        return False


def verify(path: Path_) -> dict[str, Any]:
    """Compares the size and hash of every file with the manifest, which it returns. Raises as `read_folder`."""

    def check(folder: Path) -> dict[str, Any]:
        for name, entry in manifest.entries(folder).items():
            manifest.compare(folder / name, entry["sha256"], sha256(folder / name))
        return manifest.read(folder)

    return _steady(Path(path), check)


def write_file(path: Path_, value: Any) -> str:
    """Creates or replaces one file atomically, encoded by its suffix as in `write_folder`; returns its SHA-256.

    Raises StorageError (the old file stays) and UsageError.
    """
    path = Path(path)
    temporary = _sibling(path, "tmp")
    try:
        with _storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _delete(temporary)
            _preflight(path, codec.size(value))
            entry = _write(temporary, codec.encode(path.name, value))
            os.replace(temporary, path)
            _sync(path.parent)
    except BaseException:
        _delete(temporary)
        raise
    return entry["sha256"]


def read_file(path: Path_, expected: str | None = None) -> Any:
    """The value of one file, decoded by its suffix; checked against the SHA-256 `expected` when it is given.

    Raises CorruptError when the file is missing, does not hash to `expected`, or does not decode.
    """
    path = Path(path)
    return codec.decode(path, manifest.read_bytes(path, expected))


def remove(path: Path_) -> None:
    """Removes a file or folder so that no reader meets half of it; nothing happens when there is none.

    Raises StorageError when it cannot be moved out of the way.
    """
    path = Path(path)
    aside = _sibling(path, "tmp")
    _delete(aside)
    with _storage_errors(path), contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
    _delete(aside)


def recover(path: Path_) -> None:
    """Finishes or undoes what a killed writer of `path` left: afterwards `path` is whole, its leftovers are gone.

    Leftovers of other processes that still run are not touched. Raises StorageError when renaming fails.
    """
    path = Path(path)
    news, olds = ([p for p in _leftovers(path, kind) if not _busy(p)] for kind in ("tmp", "old"))
    if olds and not path.exists():  # killed between the two renames of `_publish`
        whole = [p for p in (*olds, *news) if _is_whole(p)]  # the last of them is the newest
        with _storage_errors(path):
            os.rename((whole or olds)[-1], path)
            _sync(path.parent)
    for leftover in (*news, *olds):
        _delete(leftover)


def sweep(folder: Path_) -> None:
    """`recover` for everything inside `folder` that a killed writer left unfinished."""
    folder = Path(folder)
    if folder.is_dir():
        for name in {match["name"] for p in folder.iterdir() if (match := _LEFTOVER.fullmatch(p.name))}:
            recover(folder / name)


# -- writing ----------------------------------------------------------------------------------------------------------


def _write(path: Path, data: bytes) -> manifest.Entry:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        rest = memoryview(data)
        while rest:  # the kernel may write less than asked for, above 2 GiB always
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _publish(folder: Path, path: Path) -> None:
    aside = _sibling(path, "old")
    replaces = path.exists()
    if replaces:
        os.rename(path, aside)
    try:
        os.rename(folder, path)
    except OSError:
        if replaces:
            os.rename(aside, path)
        raise
    _sync(path.parent)
    _delete(aside)


def _sync(folder: Path) -> None:
    if os.name != "posix":  # Windows can neither open nor sync a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    """Removes a file or folder as far as possible; what stays is a leftover for the next `sweep`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _preflight(path: Path, needed: int) -> None:
    usage = shutil.disk_usage(path.parent)  # statvfs, in bytes
    if usage.total and usage.free < needed * 1.1:  # some network file systems report 0 of 0
        text = f"{needed / 1e6:.1f} MB to write, {usage.free / 1e6:.1f} MB free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {text}")


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turns an OSError inside into a StorageError that names `path` and the remedy."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        remedy = _REMEDY.get(error.errno or 0, "check the disk, or choose another folder")
        wrapped = StorageError(f"cannot write {path}: {error.strerror or error}; {remedy}")
        wrapped.errno = error.errno
        raise wrapped from error


# -- the moments between two renames ----------------------------------------------------------------------------------


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}-{os.getpid()}")


def _leftovers(path: Path, kind: str) -> list[Path]:
    """What writers of `path` left beside it, oldest first."""
    pattern = re.compile(re.escape(path.name) + rf"\.{kind}-\d+")
    with contextlib.suppress(OSError):
        found = [p for p in path.parent.iterdir() if pattern.fullmatch(p.name)]
        return sorted(found, key=lambda p: p.lstat().st_mtime_ns)
    return []


def _busy(leftover: Path) -> bool:
    pid = int(leftover.name.rpartition("-")[2])
    return pid != os.getpid() and running(pid)


def _steady(path: Path, action: Callable[[Path], T]) -> T:
    """`action` on the folder now behind `path`; again when a writer replaced the folder meanwhile."""
    for _ in range(10):
        folder = _resolve(path)
        before = _stamp(folder)
        try:
            return action(folder)
        except CorruptError:
            if _resolve(path) == folder and _stamp(folder) == before:
                raise
    return action(_resolve(path))


def _resolve(path: Path) -> Path:
    """`path`, or what a writer that replaces it (or was killed while replacing it) put aside."""
    for _ in range(3):
        if path.exists():
            return path
        for aside in reversed(_leftovers(path, "old")):
            if (aside / MANIFEST).exists():
                return aside
    raise UsageError(f"there is no folder {path}")


def _stamp(folder: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder / MANIFEST)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _is_whole(folder: Path) -> bool:
    try:
        return all(sha256(folder / name) == entry["sha256"] for name, entry in manifest.entries(folder).items())
    except (CorruptError, StorageError):
        return False
