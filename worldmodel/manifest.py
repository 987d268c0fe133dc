"""The list of a folder's files with their sizes and hashes, which makes damage and tampering visible.

Format parsers do not notice a flipped byte in a weight; a SHA-256 does. The manifest checks itself the same way.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import stat
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from worldmodel import __version__, codec
from worldmodel.errors import CorruptError, StorageError

SCHEMA = 1
MANIFEST = "MANIFEST.json"
ADVICE = "restore it from a copy, or delete this folder and use an older one"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_HASH = re.compile(r"[0-9a-f]{64}")
_MAX_BYTES = 1 << 20  # a manifest is a few kB; a larger one is not ours, and is refused before it is read

Entry = dict[str, Any]
"""{"size": bytes, "sha256": hex digest} of one file."""


def plain(name: str) -> bool:
    """Whether a folder of ours may hold a file of this name: no path, no blank, no leading dot, not the manifest's."""
    return bool(_NAME.fullmatch(name)) and name != MANIFEST


def make(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The manifest of these files. `identity` hashes the content alone: equal content, equal identity."""
    manifest: dict[str, Any] = {"schema": SCHEMA, "files": dict(entries), "versions": _versions()}
    manifest["identity"] = hashlib.sha256(codec.dumps([SCHEMA, manifest["files"]])).hexdigest()
    manifest["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    manifest["check"] = hashlib.sha256(codec.dumps(manifest)).hexdigest()
    return manifest


def read(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, itself unharmed. Raises CorruptError when it is missing, damaged or not ours."""
    path = folder / MANIFEST
    with read_errors(path):
        size = os.stat(path).st_size
    if size > _MAX_BYTES:
        raise CorruptError(f"{path} has {size} bytes, far too many for a manifest; {ADVICE}")
    data = read_bytes(path)
    manifest = codec.decode(path, data)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise CorruptError(f"{path} is not a manifest of ours; {ADVICE}")
    if manifest["schema"] > SCHEMA:
        raise CorruptError(f"{path} has schema {manifest['schema']}, we read up to {SCHEMA}: update worldmodel")
    rest = {key: value for key, value in manifest.items() if key != "check"}
    digest = hashlib.sha256(codec.dumps(rest)).hexdigest()
    if manifest.get("check") != digest or codec.dumps(manifest) != data:
        raise CorruptError(f"{path} is damaged: expected sha256 {manifest.get('check')}, found {digest}; {ADVICE}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_is_entry(entry) for entry in files.values()):
        raise CorruptError(f"{path} does not list files with size and hash; {ADVICE}")
    for name in files:
        if not plain(name):
            raise CorruptError(f"{path} names {name!r}, which is not a plain file name; do not trust this folder")
    return manifest


def entries(folder: Path) -> dict[str, Entry]:
    """The manifest's files, after checking that exactly these are there with the right sizes; hashes come later.

    Files that begin with a dot (`.DS_Store`, `.nfs...`) are nobody's. Raises CorruptError naming the file.
    """
    listed = read(folder)["files"]
    with read_errors(folder):
        present = {name for name in os.listdir(folder) if not name.startswith(".")} - {MANIFEST}
    for name in sorted(set(listed) - present):
        raise CorruptError(f"{folder / name} is missing (expected sha256 {listed[name]['sha256']}); {ADVICE}")
    for name in sorted(present - set(listed)):
        raise CorruptError(f"{folder / name} is not in the manifest, so it does not belong there; remove it")
    for name, entry in listed.items():
        path = folder / name
        with read_errors(path):
            status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptError(f"{path} is not a regular file; {ADVICE}")
        if status.st_size != entry["size"]:
            compare(path, entry["sha256"], sha256(path), f" ({entry['size']} bytes expected, {status.st_size} found)")
    return listed


def compare(path: Path, expected: str, found: str, detail: str = "") -> None:
    """Raises CorruptError with both when the SHA-256 of `path` is not what it should be."""
    if found != expected:
        raise CorruptError(f"{path} is damaged{detail}: expected sha256 {expected}, found {found}; {ADVICE}")


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's content, in constant memory. Raises CorruptError when it cannot be read."""
    digest = hashlib.sha256()
    with read_errors(Path(path)), open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_bytes(path: Path, expected: str | None = None) -> bytes:
    """A file's content, checked against the SHA-256 `expected` when it is given. Raises CorruptError."""
    with read_errors(path):
        data = path.read_bytes()
    if expected is not None:
        compare(path, expected, hashlib.sha256(data).hexdigest())
    return data


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """A file that cannot be read is corrupt, unless we lack the right to read it: that is for the user to mend."""
    try:
        yield
    except PermissionError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}; ask its owner for the right to read it") from error
    except FileNotFoundError as error:
        raise CorruptError(f"{path} is missing; {ADVICE}") from error
    except (OSError, MemoryError) as error:
        raise CorruptError(f"{path} cannot be read: {error}; {ADVICE}") from error


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"size", "sha256"}
        and isinstance(entry["size"], int)
        and isinstance(entry["sha256"], str)
        and bool(_HASH.fullmatch(entry["sha256"]))
    )


def _versions() -> dict[str, str]:
    out = {"worldmodel": __version__, "python": platform.python_version()}
    for name in ("torch", "gymnasium"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            out[name] = metadata.version(name)
    return out
