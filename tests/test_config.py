"""Configurations travel as JSON without loss, presets follow their rule, mistakes are named."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json

import pytest

from worldmodel import config as module
from worldmodel.config import TRACKS, Config, differences, from_dict, to_dict
from worldmodel.errors import UsageError
from worldmodel.presets import PRESETS, preset, size


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    config = PRESETS[name]
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert differences(config, from_dict(to_dict(config))) == {}


def test_missing_keys_take_their_defaults() -> None:
    assert from_dict({}) == Config()
    assert from_dict({"world": {"deter": 32}}) == Config(world=dataclasses.replace(Config().world, deter=32))


def test_a_run_that_had_what_is_gone_turned_off_is_understood() -> None:
    assert from_dict({"world_only_from": 1.0, "drivers": 1, "stumbles": 0.0, "env": {"read_gauges": False}}) == Config()
    with pytest.raises(UsageError, match="unknown configuration key stumbles"):
        from_dict({"stumbles": 0.5})
    with pytest.raises(UsageError, match=r"unknown configuration key env\.read_gauges"):
        from_dict({"env": {"read_gauges": True}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeed": 1}, r"unknown configuration key seeed; did you mean seed\?"),
        ({"world": {"detr": 1}}, r"unknown configuration key world.detr; did you mean world.deter\?"),
        ({"optim": {"zzzzzz": 1}}, r"unknown configuration key optim.zzzzzz$"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest_known(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_dict(values)


def test_a_section_that_is_no_mapping_is_named() -> None:
    with pytest.raises(UsageError, match="world"):
        from_dict({"world": 5})


def test_unknown_presets_are_named_with_the_nearest_known() -> None:
    assert preset("12m") is PRESETS["12m"]
    with pytest.raises(UsageError, match=r"'carrracing'; did you mean carracing or carracing-fast\?"):
        preset("carrracing")
    with pytest.raises(UsageError, match="carracing or small or debug or"):
        preset("?")


def test_differences_are_dotted_keys_with_both_values() -> None:
    a = Config()
    b = dataclasses.replace(a, seed=7, world=dataclasses.replace(a.world, vision="paper"))
    assert differences(a, b) == {"world.vision": ("patch", "paper"), "seed": (1, 7)}


@pytest.mark.parametrize(
    ("name", "deter", "hidden", "classes"),
    [("1m", 512, 64, 4), ("12m", 2048, 256, 16), ("25m", 3072, 384, 24), ("50m", 4096, 512, 32),
     ("100m", 6144, 768, 48), ("200m", 8192, 1024, 64)],
)  # fmt: skip
def test_published_sizes_follow_their_rule(name: str, deter: int, hidden: int, classes: int) -> None:
    c = PRESETS[name]
    w = c.world
    assert (w.deter, w.hidden, w.units, w.classes, w.depth) == (deter, hidden, hidden, classes, classes)
    assert (w.stoch, w.blocks, w.vision, w.norm, w.decode_share) == (32, 8, "paper", "rms", 1.0)
    assert (w.head_layers, w.vector_layers, w.bins, w.unimix, w.free_nats) == (1, 3, 255, 0.01, 1.0)
    assert (w.dyn_scale, w.rep_scale) == (1.0, 0.1) and w.reward_scale == w.cont_scale == w.vector_scale == 1.0
    p = c.policy
    assert (p.units, p.layers, p.horizon, p.starts, p.lam, p.entropy) == (hidden, 3, 15, 0, 0.95, 3e-4)
    assert p.discount == 1 - 1 / 333 and (p.slow_rate, p.slow_scale, p.scale_rate) == (0.02, 1.0, 0.01)
    assert (p.min_std, p.max_std, p.unimix, p.gradient, p.norm) == (0.1, 1.0, 0.01, "reinforce", "rms")
    o = c.optim
    assert (o.world_lr, o.policy_lr, o.warmup, o.agc) == (4e-5, 4e-5, 1000, 0.3)
    assert (o.beta1, o.beta2, o.eps) == (0.9, 0.999, 1e-20)
    assert (c.replay.batch, c.replay.length) == (16, 64)


def test_size_takes_overrides() -> None:
    assert size(512, seed=5).seed == 5 and size(512) == PRESETS["1m"]


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["carracing"].seed = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["carracing"].world.deter = 2  # type: ignore[misc]


def test_every_default_is_explained() -> None:
    """Each field is followed by its docstring: unit, meaning, provenance."""
    classes = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)]
    for node in classes:
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            section = isinstance(field, ast.AnnAssign) and hasattr(module, ast.unparse(field.annotation))
            if isinstance(field, ast.AnnAssign) and not section:
                explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert explained, f"{node.name}.{ast.unparse(field.target)} has no docstring"
    assert [node.name for node in classes] == [
        "EnvConfig", "WorldConfig", "WorldModelsConfig", "PolicyConfig", "EvolutionConfig", "OptimConfig",
        "ReplayConfig", "Config",
    ]  # fmt: skip


def test_ranges_of_tracks_are_disjoint() -> None:
    """A run uses at most 100 x 10,000 training seeds (train/loop.py), evaluations far fewer."""
    first = sorted(TRACKS.values())
    assert set(TRACKS) == {"train", "select", "report"} and first[0] == TRACKS["train"]
    assert all(b - a >= 1_000_000 for a, b in itertools.pairwise(first))


def test_bug_the_preset_for_any_task_asked_for_pictures_of_carracing() -> None:
    """The README's command for an environment of one's own was refused, for its preset read CarRacing's score."""
    config = preset("small")
    assert not config.env.read_score and not config.env.see_time and not config.env.see_tiles and not config.relearn
