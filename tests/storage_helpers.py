"""What the storage tests share: numbered content, forked children that die on purpose, forged folders."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import codec, manifest, storage

DEAD = 2**22 + 1
"""A pid above the largest that Linux gives out."""
SYSTEM_CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir")


def content(n: int, short: bool = False) -> dict[str, Any]:
    """Files that all tell n; `short` leaves two of them out."""
    files = {
        "a.json": {"n": n, "text": "ü", "list": [1, 2.5, None, True]},
        "b.safetensors": {"w": torch.full((3, 2), float(n)), "n": torch.tensor(n)},
        "c.npy": np.full((2, 3), n, np.uint8),
        "d.bin": bytes([n % 256]) * 20,
    }
    return {name: files[name] for name in list(files)[: 2 if short else 4]}


def number(files: dict[str, Any]) -> int:
    """The n of `content`, provided that all files are of the same one."""
    n = files["a.json"]["n"]
    assert files["b.safetensors"]["n"].item() == n and (files["b.safetensors"]["w"] == n).all()
    if len(files) > 2:
        assert (files["c.npy"] == n % 256).all() and files["d.bin"] == bytes([n % 256]) * 20
    return n


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def in_child(action: Callable[[], None]) -> int:
    """Runs `action` in a forked process; returns the exit status as `os.waitstatus_to_exitcode`, -9 if killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(k: int, torn: bool = False) -> None:
    """From now on this process dies at its k-th system call that changes files; `torn` lets half a write through."""
    calls = 0

    def wrap(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == k:
                if torn and name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in SYSTEM_CALLS:
        setattr(os, name, wrap(getattr(os, name), name))


def forge(folder: Path, files: dict[str, bytes], listed: dict[str, dict[str, Any]] | None = None) -> Path:
    """A folder with a perfectly valid manifest around content that `write_folder` would not have made."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    entries = {name: {"size": len(data), "sha256": storage.sha256(folder / name)} for name, data in files.items()}
    (folder / "MANIFEST.json").write_bytes(codec.dumps(manifest.make({**entries, **(listed or {})})))
    return folder
