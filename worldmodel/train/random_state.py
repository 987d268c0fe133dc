"""Every random stream of a run, as files: what it takes to go on as if nothing had happened."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from worldmodel.errors import CorruptError

JSON, TENSORS = "random.json", "random.safetensors"


def rng_state(generators: Mapping[str, np.random.Generator | torch.Generator] | None = None) -> dict[str, Any]:
    """Two files for `storage.write_folder`: the states of python's `random`, numpy's and torch's global generators,
    torch's CUDA generators where CUDA is in use, and of the named `generators` (numpy's or torch's).
    """
    legacy = _plain(np.random.get_state(legacy=False))
    words: dict[str, Any] = {"python": random.getstate(), "numpy": legacy, "named": {}}
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors.update({f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())})
    for name, generator in (generators or {}).items():
        if isinstance(generator, torch.Generator):
            tensors[f"named.{name}"] = generator.get_state()
        else:
            words["named"][name] = _plain(generator.bit_generator.state)
    return {JSON: words, TENSORS: tensors}


def set_rng_state(
    files: Mapping[str, Any], generators: Mapping[str, np.random.Generator | torch.Generator] | None = None
) -> None:
    """Restores, in place, what `rng_state` returned (extra files are ignored). GPUs that are gone are skipped.

    Raises CorruptError when a state is missing, or does not fit its generator.
    """
    try:
        words, tensors = files[JSON], files[TENSORS]
        version, state, gauss = words["python"]
        random.setstate((version, tuple(state), gauss))
        np.random.set_state(_arrays(words["numpy"]))
        torch.set_rng_state(tensors["torch"])
        if torch.cuda.is_available():
            for i in range(torch.cuda.device_count()):
                if f"cuda.{i}" in tensors:
                    torch.cuda.set_rng_state(tensors[f"cuda.{i}"], i)
        for name, generator in (generators or {}).items():
            if isinstance(generator, torch.Generator):
                generator.set_state(tensors[f"named.{name}"])
            else:
                generator.bit_generator.state = _arrays(words["named"][name])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        text = f"the random state of the checkpoint does not fit this run: {error!r}; resume from another checkpoint"
        raise CorruptError(text) from error


def _plain(state: Any) -> Any:
    """numpy's state dictionaries, with lists for their arrays."""
    if isinstance(state, Mapping):
        return {key: _plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, (np.ndarray, np.generic)) else state


def _arrays(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _arrays(value) for key, value in state.items()}
    return np.array(state, np.uint64) if isinstance(state, list) else state
