"""Damage and malice are refused, with the file, the hashes and the remedy, before anything runs or is allocated."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from storage_helpers import content, forge, in_child, number

from worldmodel import storage
from worldmodel.errors import CorruptError


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    storage.write_folder(folder, content(1))
    tried = 0
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for position in range(0, len(good), 3):
            bad = bytearray(good)
            bad[position] ^= 1 << (position % 8)
            path.write_bytes(bad)
            with pytest.raises(CorruptError, match=path.name) as caught:
                storage.read_folder(folder)
            assert caught.value.exit_code == 4
            tried += 1
        path.write_bytes(good)
    assert tried > 300 and number(storage.read_folder(folder)) == 1


def _truncate(folder: Path) -> None:
    os.truncate(folder / "b.safetensors", 40)


def _append(folder: Path) -> None:
    with open(folder / "b.safetensors", "ab") as file:
        file.write(b"\0")


def _empty(folder: Path) -> None:
    os.truncate(folder / "b.safetensors", 0)


def _swap_tensors(folder: Path) -> None:
    from safetensors.torch import load, save

    tensors = load((folder / "b.safetensors").read_bytes())
    (folder / "b.safetensors").write_bytes(save({**tensors, "w": tensors["w"].flip(0) + 1}))


@pytest.mark.parametrize("damage", [_truncate, _append, _empty, _swap_tensors])
def test_damage_names_file_hashes_and_remedy(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = tmp_path / "x"
    expected = storage.write_folder(folder, content(1))["files"]["b.safetensors"]["sha256"]
    damage(folder)
    with pytest.raises(CorruptError) as caught:
        storage.read_folder(folder)
    text = str(caught.value)
    assert str(folder / "b.safetensors") in text and "restore" in text
    assert f"expected sha256 {expected}" in text and f"found {storage.sha256(folder / 'b.safetensors')}" in text


def test_missing_extra_and_exchanged_files(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    storage.write_folder(folder, {"a.bin": b"1", "b.bin": b"2"})
    (folder / ".DS_Store").write_bytes(b"a desktop's, not ours")
    assert storage.read_folder(folder) == {"a.bin": b"1", "b.bin": b"2"}
    (folder / "evil.bin").write_bytes(b"")
    with pytest.raises(CorruptError, match=r"evil\.bin is not in the manifest"):
        storage.read_folder(folder)
    (folder / "evil.bin").unlink()
    (folder / "a.bin").rename(folder / ".t")
    with pytest.raises(CorruptError, match=r"a\.bin is missing"):
        storage.read_folder(folder)
    (folder / "b.bin").rename(folder / "a.bin")
    (folder / ".t").rename(folder / "b.bin")
    with pytest.raises(CorruptError, match=r"a\.bin is damaged"):
        storage.read_folder(folder)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"schema": 1}', b'{"schema": "1"}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_folder_without_valid_manifest_is_corrupt(tmp_path: Path, text: bytes) -> None:
    storage.write_folder(tmp_path / "x", content(1))
    (tmp_path / "x/MANIFEST.json").write_bytes(text)
    with pytest.raises(CorruptError, match=r"MANIFEST.json"):
        storage.read_folder(tmp_path / "x")
    (tmp_path / "x/MANIFEST.json").unlink()
    with pytest.raises(CorruptError, match=r"MANIFEST.json is missing"):
        storage.read_folder(tmp_path / "x")
    assert not storage.exists(tmp_path / "x")


def test_manifest_that_says_the_same_in_other_bytes_is_damaged(tmp_path: Path) -> None:
    path = forge(tmp_path / "x", {}) / "MANIFEST.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b" "))
    with pytest.raises(CorruptError, match=r"MANIFEST.json is damaged"):
        storage.read_folder(tmp_path / "x")


def test_newer_schema_asks_for_an_update(tmp_path: Path) -> None:
    forge(tmp_path / "x", {})
    listing = json.loads((tmp_path / "x/MANIFEST.json").read_bytes())
    (tmp_path / "x/MANIFEST.json").write_text(json.dumps(listing | {"schema": 99}))
    with pytest.raises(CorruptError, match=r"schema 99.*update worldmodel"):
        storage.read_folder(tmp_path / "x")


def test_oversized_manifest_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_folder(tmp_path / "x", content(1))
    os.truncate(tmp_path / "x/MANIFEST.json", 1 << 40)  # sparse
    with pytest.raises(CorruptError, match="too many for a manifest"):
        storage.read_folder(tmp_path / "x")


# -- malice -----------------------------------------------------------------------------------------------------------


class _Bomb:
    def __init__(self, fuse: Path):
        self.fuse = fuse

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.fuse,)


@pytest.mark.parametrize("name", ["x.safetensors", "x.npy", "x.json"])
def test_a_pickle_in_disguise_does_not_run(tmp_path: Path, name: str) -> None:
    fuse = tmp_path / "fuse"
    attack = pickle.dumps(_Bomb(fuse))
    pickle.loads(attack)
    assert fuse.exists(), "the attack works on a naive loader"
    fuse.unlink()
    with pytest.raises(CorruptError, match=f"{name} is not a valid"):
        storage.read_folder(forge(tmp_path / "x", {name: attack}))
    np.save(tmp_path / "o.npy", np.array([_Bomb(fuse)], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptError, match="is not a valid"):
        storage.read_folder(forge(tmp_path / "x", {name: (tmp_path / "o.npy").read_bytes()}))
    with pytest.raises(CorruptError, match="pickled objects"):
        storage.read_folder(forge(tmp_path / "x", {"x.npy": (tmp_path / "o.npy").read_bytes()}))
    torch.save(_Bomb(fuse), tmp_path / "o.pt")
    with pytest.raises(CorruptError, match="is not a valid"):
        storage.read_folder(forge(tmp_path / "x", {name: (tmp_path / "o.pt").read_bytes()}))
    assert not fuse.exists()


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/b", "..", ".", "", "a\\b", "MANIFEST.json", ".x", "a\n"]
)
def test_manifest_with_path_like_names_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    entry = {"size": 1, "sha256": storage.sha256(tmp_path / "secret")}
    with pytest.raises(CorruptError, match="not a plain file name"):
        storage.read_folder(forge(tmp_path / "x", {}, {name: entry}), ["../secret"])


ENTRY = {"size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize("entry", [None, {}, ENTRY | {"size": "1"}, ENTRY | {"sha256": "x"}, ENTRY | {"path": "/"}])
def test_manifest_with_malformed_entries_is_refused(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(CorruptError, match="does not list files"):
        storage.read_folder(forge(tmp_path / "x", {}, {"a.bin": entry}))


def test_a_device_or_fifo_is_refused_not_waited_for(tmp_path: Path) -> None:
    storage.write_folder(tmp_path / "x", content(1))
    (tmp_path / "x/d.bin").unlink()
    os.mkfifo(tmp_path / "x/d.bin")
    with pytest.raises(CorruptError, match="not a regular file"):
        storage.read_folder(tmp_path / "x")


def _safetensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(shape: list[int], end: int) -> bytes:
    return _safetensors({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}, b"1234")


def _npy(shape: str, data: bytes = b"", version: int = 1) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + data


HUGE = 1 << 40
HOSTILE = {
    "tensor huge shape and offsets": ("x.safetensors", _tensor([HUGE], 4 * HUGE)),
    "tensor huge shape": ("x.safetensors", _tensor([HUGE], 4)),
    "tensor overflowing shape": ("x.safetensors", _tensor([2**63, 2**63], 4)),
    "tensor huge header": ("x.safetensors", _safetensors(b"{}", length=HUGE)),
    "tensor header not json": ("x.safetensors", _safetensors(b"{" * 1000)),
    "array huge shape": ("x.npy", _npy(f"({HUGE},)")),
    "array negative shape": ("x.npy", _npy("(-1, -1)", b"1234")),
    "array one byte more": ("x.npy", _npy("(1,)", b"12345")),
    "array unknown version": ("x.npy", _npy("(1,)", b"1234", version=3)),
    "array huge header": ("x.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + b"{"),
    "json nan": ("x.json", b'{"a": NaN}'),
    "json twice": ("x.json", b'{"a": 1, "a": 2}'),
    "json deep": ("x.json", b"[" * 100_000),
    "json not utf-8": ("x.json", b"\xff"),
}


def test_the_forged_files_would_be_valid_if_they_were_honest(tmp_path: Path) -> None:
    out = storage.read_folder(forge(tmp_path / "x", {"a.safetensors": _tensor([1], 4), "b.npy": _npy("(1,)", b"1234")}))
    assert out["a.safetensors"]["w"].shape == (1,) and out["b.npy"].shape == (1,)


@pytest.mark.parametrize("name, data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_headers_are_refused_before_allocation(tmp_path: Path, name: str, data: bytes) -> None:
    def read() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
        with pytest.raises(CorruptError, match=f"{name} is not a valid") as caught:
            storage.read_folder(tmp_path / "x")
        assert not isinstance(caught.value.__cause__, MemoryError)

    forge(tmp_path / "x", {name: data})
    assert in_child(read) == 0
