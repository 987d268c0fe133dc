"""Values <-> bytes, chosen by the file's suffix: JSON, safetensors and npy without objects. No code can run."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from worldmodel.errors import CorruptError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


def encode(name: str, value: Any) -> bytes:
    """The bytes of the file `name`: `.json`, `.safetensors` (dict[str, Tensor]), `.npy` (ndarray), others bytes.

    Raises UsageError naming the file (and the key, for JSON) when the value does not fit the suffix.
    """
    suffix = PurePath(name).suffix
    if suffix == ".json":
        return _encode_json(name, value)
    if suffix == ".safetensors":
        return _encode_tensors(name, value)
    if suffix == ".npy":
        return _encode_array(name, value)
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise UsageError(f"{name}: a file with this suffix takes bytes, not {type(value).__name__}")
    return bytes(value)


def decode(name: str | PurePath, data: bytes) -> Any:
    """The inverse of `encode`. Tensors come back on the CPU, arrays writable. Raises CorruptError naming the file."""
    suffix = PurePath(name).suffix
    try:
        if suffix == ".json":
            return json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        if suffix == ".safetensors":
            from safetensors.torch import load

            return load(data)
        return _decode_array(data) if suffix == ".npy" else data
    except Exception as error:  # parsers fail in many ways on hostile bytes: safetensors, SyntaxError, RecursionError
        kind = suffix.removeprefix(".")
        raise CorruptError(f"{name} is not a valid {kind} file: {error}; it was made by something else") from error


def size(value: Any) -> int:
    """About how many bytes `encode` will make of `value` (exact to a header), without building them."""
    if isinstance(value, (bytes, bytearray, np.ndarray)):
        return len(value) if not isinstance(value, np.ndarray) else value.nbytes
    if isinstance(value, memoryview):
        return value.nbytes
    tensors = list(value.values()) if isinstance(value, Mapping) else []
    if tensors and all(hasattr(tensor, "element_size") for tensor in tensors):
        return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)
    return len(json.dumps(value, default=str, skipkeys=True))


def dumps(value: Any) -> bytes:
    """Canonical JSON: sorted keys, indented, one final newline, no NaN."""
    text = json.dumps(value, allow_nan=False, sort_keys=True, indent=1, ensure_ascii=False, default=_plain)
    return (text + "\n").encode()


def _encode_json(name: str, value: Any) -> bytes:
    problem = _unstorable(value, "")
    if problem:
        raise UsageError(f"{name}: {problem}")
    return dumps(value)


def _unstorable(value: Any, where: str) -> str:
    """Why `value` would not come back from JSON as it went in; "" if it would (tuples come back as lists)."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"the key {key!r} at {where or 'the top'} is not a string; JSON would turn it into one"
            if problem := _unstorable(item, f"{where}.{key}" if where else key):
                return problem
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if problem := _unstorable(item, f"{where}[{index}]"):
                return problem
    elif isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            return f"{where or 'the value'} is {value}, which JSON cannot hold; store None instead"
    elif not (value is None or isinstance(value, (str, bool, int, np.integer, np.bool_))):
        return f"{where or 'the value'} is a {type(value).__name__}, which JSON cannot hold"
    return ""


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key occurs twice")
    return out


def _encode_tensors(name: str, value: Mapping[str, Tensor]) -> bytes:
    import torch
    from safetensors.torch import save

    if not isinstance(value, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        raise UsageError(f"{name}: a .safetensors file takes a dict of names and tensors")
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for key, tensor in value.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen:  # tied or sliced tensors: safetensors refuses shared memory, so each gets its own copy
            tensor = tensor.clone()
        seen.add(storage)
        out[key] = tensor
    return save(out)


def _encode_array(name: str, value: np.ndarray) -> bytes:
    if not isinstance(value, np.ndarray) or value.dtype.hasobject:
        kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UsageError(f"{name}: a .npy file takes an array of numbers, not {kind}")
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return buffer.getvalue()


def _decode_array(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version} is not one we write")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which could run code")
    offset = file.tell()  # checked before anything is allocated: a header can claim any shape
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - offset:
        raise ValueError(f"its header claims {shape} {dtype}, but {len(data) - offset} bytes follow")
    flat = np.frombuffer(data, dtype, count=math.prod(shape), offset=offset)
    return flat.reshape(shape, order="F" if fortran else "C").copy(order="F" if fortran else "C")
