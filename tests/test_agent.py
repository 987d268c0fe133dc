"""An agent acts, remembers, travels through a folder unchanged, and names what does not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ACTIONS, SEEN, agent, config, expect_equal, observation, shake

import worldmodel
import worldmodel.agent as module
from worldmodel import storage
from worldmodel.agent import Agent, build
from worldmodel.envs import Spaces
from worldmodel.errors import CorruptError, UsageError
from worldmodel.randomness import RowNoise, generator


def arrays(seen: str, *leading: int) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in observation(seen, *leading).items()}


# -- acting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("discrete", [False, True])
def test_actions_are_what_environments_take(seen: str, discrete: bool) -> None:
    made = agent(seen, discrete)
    made.start(4)
    actions = made.step(arrays(seen, 4), np.ones(4, bool), sample=True)
    if discrete:
        assert actions.shape == (4,) and actions.dtype == np.int64 and 0 <= actions.min() <= actions.max() < ACTIONS
        assert torch.equal(made.action, torch.eye(ACTIONS)[torch.from_numpy(actions)])
    else:
        assert actions.shape == (4, ACTIONS) and actions.dtype == np.float32 and np.abs(actions).max() <= 1
    one = made.act(arrays(seen))
    assert isinstance(one, int) if discrete else (one.shape == (ACTIONS,) and one.dtype == np.float32)
    assert made.state.shape == (1, made.world.width)


def test_the_environment_gets_the_clipped_action_and_the_world_the_sample() -> None:
    made = agent("vector")
    made.start(64)
    actions = made.step(arrays("vector", 64), np.ones(64, bool), sample=True)
    raw = made.action.numpy()
    assert np.abs(raw).max() > 1.2
    np.testing.assert_array_equal(actions, raw.clip(-1, 1))


@pytest.mark.parametrize("discrete", [False, True])
def test_greedy_actions_are_the_mode(discrete: bool, noiseless: None) -> None:
    made = agent("vector", discrete)
    made.start(8)
    obs = arrays("vector", 8)
    first = made.step(obs, np.ones(8, bool))
    mode = made.policy.distribution(made.world.features(made.state)).mode()
    expected = mode.argmax(-1).numpy() if discrete else mode.detach().numpy()
    np.testing.assert_array_equal(first, expected)
    made.start(8)
    np.testing.assert_array_equal(made.step(obs, np.ones(8, bool)), first)


@pytest.mark.parametrize("discrete", [False, True])
def test_beliefs_are_averaged_or_put_to_the_vote_and_one_of_them_is_remembered(discrete: bool) -> None:
    made = agent("both", discrete, policy={"beliefs": 5})
    shake(made.policy, 2.0)
    made.start(6)
    made.step(arrays("both", 6), np.ones(6, bool))
    before, taken, obs = made.state, made.action, observation("both", 6)
    torch.manual_seed(4)
    actions = made.step({name: value.numpy() for name, value in obs.items()}, np.zeros(6, bool))
    torch.manual_seed(4)
    with torch.no_grad():
        states = [made.world.observe(before, taken, obs, torch.zeros(6, dtype=torch.bool)) for _ in range(5)]
        said = torch.stack([made.policy.act(made.world.features(state), sample=False) for state in states])
    assert torch.equal(made.state, states[0]) and not torch.equal(states[0], states[1])
    assert not torch.equal(said[0], said[1]), "they disagree"
    if discrete:
        np.testing.assert_array_equal(actions, said.sum(0).argmax(-1).numpy())
        assert torch.equal(made.action, torch.eye(ACTIONS)[torch.from_numpy(actions)]), "the world is told one choice"
    else:
        np.testing.assert_allclose(actions, said.mean(0).clamp(-1, 1).numpy(), rtol=1e-5, atol=1e-6)


def test_sampled_actions_come_from_one_belief_as_in_training() -> None:
    one, many = agent("both"), agent("both", policy={"beliefs": 5})
    many.load_weights(one.weights())
    for t in range(3):
        obs = arrays("both")
        torch.manual_seed(t)
        expected = one.act(obs, is_first=t == 0, sample=True)
        torch.manual_seed(t)
        np.testing.assert_array_equal(many.act(obs, is_first=t == 0, sample=True), expected)


def test_with_beliefs_an_episode_still_depends_on_its_seed_alone() -> None:
    """Noise is drawn row by row, whoever shares the batch."""
    made = agent("both", policy={"beliefs": 3})
    obs = arrays("both", 3)
    alone = []
    for rows in ([0, 1, 2], [1]):
        made.start(len(rows))
        with RowNoise([generator(row) for row in rows]):
            for t in range(3):
                seen = {name: value[rows] for name, value in obs.items()}
                action = made.step(seen, np.full(len(rows), t == 0))
        alone.append(action[rows.index(1)])
    np.testing.assert_allclose(alone[0], alone[1], rtol=1e-5)


def test_a_step_filters_with_the_last_state_and_action() -> None:
    made = agent("both")
    made.start(3)
    made.step(arrays("both", 3), np.ones(3, bool), sample=True)
    state, taken, obs = made.state, made.action, observation("both", 3)
    first = torch.tensor([False, True, False])
    torch.manual_seed(4)
    made.step({name: value.numpy() for name, value in obs.items()}, first.numpy())
    torch.manual_seed(4)
    with torch.no_grad():
        expected = made.world.observe(state, taken, obs, first)
    assert torch.equal(made.state, expected) and not made.state.requires_grad


def test_act_is_step_with_a_batch_of_one(noiseless: None) -> None:
    single, batched = agent("both"), agent("both")
    batched.load_weights(single.weights())
    batched.start(1)
    for t in range(4):
        obs = arrays("both")
        one = single.act(obs, is_first=t in (0, 2))
        many = batched.step({n: v[None] for n, v in obs.items()}, np.array([t in (0, 2)]))
        np.testing.assert_array_equal(one, many[0])
    assert torch.equal(single.state, batched.state)


def test_only_the_first_call_after_start_begins_an_episode(noiseless: None) -> None:
    made = agent("vector")
    sequence = [arrays("vector") for _ in range(3)]
    left_out = [made.act(obs) for obs in sequence]
    made.start(1)
    told = [made.act(obs, is_first=t == 0) for t, obs in enumerate(sequence)]
    np.testing.assert_array_equal(left_out, told)
    always = [made.act(obs, is_first=True) for obs in sequence]
    np.testing.assert_array_equal(always[0], told[0])
    assert (always[1] != told[1]).any()


@pytest.mark.parametrize("seen", ["image", "both"])
def test_raw_images_of_another_size_are_resized(seen: str, noiseless: None) -> None:
    """The user holds a 96 x 96 frame of the environment, the agent saw less."""
    made = agent(seen)
    small = arrays(seen)
    large = dict(small, image=small["image"].repeat(6, 0).repeat(6, 1))  # every pixel six times: the area mean is exact
    expected = made.act(small, is_first=True)
    np.testing.assert_array_equal(made.act(large, is_first=True), expected)
    if seen == "image":
        np.testing.assert_array_equal(made.act(large["image"], is_first=True), expected)


def test_a_bare_vector_of_any_float_type_is_taken(noiseless: None) -> None:
    made, vector = agent("vector"), np.arange(5, dtype=np.float64)
    np.testing.assert_array_equal(made.act(vector, True), made.act({"vector": vector.astype(np.float32)}, True))


@pytest.mark.parametrize(
    ("seen", "obs", "message"),
    [
        ("vector", np.zeros(6, np.float32), r"'vector' has shape \(6,\).*trained on \(5,\)"),
        ("image", np.zeros((96, 96), np.uint8), r"'image' has shape \(96, 96\).*trained on \(16, 16, 3\)"),
        ("image", np.zeros((96, 96, 4), np.uint8), r"'image' has shape \(96, 96, 4\)"),
        ("both", {"image": np.zeros((16, 16, 3), np.uint8)}, r"'vector' is missing.*\['vector', 'image'\]"),
        ("both", np.zeros(5), r"needs a dict of \['vector', 'image'\]"),
    ],
)
def test_observations_that_do_not_fit_are_named(seen: str, obs, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        agent(seen).act(obs)


def test_a_raw_grey_image_is_taken() -> None:
    made = build(config(), Spaces({"image": (16, 16, 1)}, False, 2), torch.float32)
    assert made.act(np.zeros((96, 96), np.uint8)).shape == (2,)


@pytest.mark.parametrize(("states", "seen"), [(1, 4), (4, 1)])
def test_another_number_of_environments_than_started_is_refused(states: int, seen: int) -> None:
    made = agent("vector")
    made.start(states)
    with pytest.raises(UsageError, match="start"):
        made.step(arrays("vector", seen), np.ones(seen, bool))


def test_images_in_zero_one_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="'image' must be uint8"):
        agent("image").act(np.zeros((16, 16, 3), np.float32))


def test_a_fork_has_the_weights_and_a_state_of_its_own(noiseless: None) -> None:
    made = agent("vector")
    obs = arrays("vector")
    first = made.act(obs)
    state = made.state
    fork = made.fork()
    assert not fork.state.any() and fork.version == made.version
    np.testing.assert_array_equal(fork.act(obs), first)
    fork.act(arrays("vector"))
    assert made.state is state
    with torch.no_grad():
        made.policy.actor[-1].bias.add_(1)
    assert fork.version == made.version  # the same weights, not a copy


# -- saving and loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True])
def test_save_and_load_round_trip(discrete: bool, tmp_path: Path, noiseless: None) -> None:
    made = agent("both", discrete, seed=9)
    made.policy.scale.high.fill_(3.0)
    made.save(tmp_path / "a", {"score": 12.5})
    loaded = worldmodel.load(tmp_path / "a")
    assert (loaded.config, loaded.spaces, loaded.card) == (made.config, made.spaces, {"score": 12.5})
    assert loaded.version == made.version and loaded.policy.scale.high == 3
    assert loaded.world.precision == torch.float32
    for t in range(3):
        obs = arrays("both")
        np.testing.assert_array_equal(made.act(obs, t == 0), loaded.act(obs, t == 0))
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"config.json", "spaces.json", "agent.safetensors", "card.json", "MANIFEST.json"}
    loaded.save(tmp_path / "b")
    assert worldmodel.load(tmp_path / "b").card == {"score": 12.5}  # the card travels on


def test_half_precision_on_disk_is_half_the_size_and_the_rounded_agent(tmp_path: Path) -> None:
    made = agent("both")
    sizes = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        made.save(folder, dtype=dtype)
        sizes[dtype] = sum(v.nbytes for v in storage.read_file(folder / "agent.safetensors").values())
        loaded = Agent.load(folder)
        assert loaded.version == made.version if dtype == torch.float32 else loaded.version != made.version
        assert {value.dtype for value in loaded.weights().values()} == {torch.float32}
        for name, value in loaded.weights().items():
            assert torch.equal(value, made.weights()[name].to(dtype).float()), name
    scalars = sum(value.nbytes for value in made.weights().values() if not value.ndim)
    assert sizes[torch.float16] == sizes[torch.bfloat16] == (sizes[torch.float32] - scalars) / 2 + scalars
    assert scalars == 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bug_a_return_scale_beyond_float16_was_infinite_in_a_shipped_agent(dtype: torch.dtype, tmp_path: Path) -> None:
    made = agent("vector")
    made.policy.scale.low.fill_(-70_000.0)
    made.policy.scale.high.fill_(123_457.0)
    made.save(tmp_path / "a", dtype=dtype)
    scale = Agent.load(tmp_path / "a").policy.scale
    assert (scale.low.item(), scale.high.item(), scale.value().item()) == (-70_000.0, 123_457.0, 193_457.0)


def test_a_run_folder_loads_its_best(tmp_path: Path) -> None:
    made = agent("vector")
    made.save(tmp_path / "run" / "best")
    assert Agent.load(tmp_path / "run").version == made.version
    assert Agent.load(tmp_path / "run" / "best").version == made.version


def test_nothing_there_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no agent in .*nowhere.*a run folder with a best agent, or an agent folder"):
        Agent.load(tmp_path / "nowhere")


def test_bug_an_agent_of_a_later_version_did_not_say_which_file_was_not_understood(tmp_path: Path) -> None:
    agent("vector").save(tmp_path / "a")
    contents = storage.read_folder(tmp_path / "a")
    contents["config.json"]["dream_twice"] = 1
    storage.write_folder(tmp_path / "a", contents)
    file = re.escape(str(tmp_path / "a" / "config.json"))
    with pytest.raises(UsageError, match=f"{file}: unknown .* dream_twice.*: another version of worldmodel wrote it"):
        Agent.load(tmp_path / "a")


def test_damaged_weights_are_noticed(tmp_path: Path) -> None:
    agent("vector").save(tmp_path / "a")
    path = tmp_path / "a" / "agent.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=r"agent\.safetensors"):
        Agent.load(tmp_path / "a")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    made = agent("vector")
    weights = made.weights()
    missing = {name: value for name, value in weights.items() if name != "world.core.norm.weight"}
    with pytest.raises(CorruptError, match=r"1 differ: world\.core\.norm\.weight"):
        made.load_weights(missing)
    with pytest.raises(CorruptError, match=r"1 differ: world\.extra"):
        made.load_weights(weights | {"world.extra": torch.zeros(1)})
    with pytest.raises(CorruptError, match=r"1 differ: policy\.scale\.low"):
        made.load_weights(weights | {"policy.scale.low": torch.zeros(2)})
    contents = storage.read_folder
    made.save(tmp_path / "a")
    files = contents(tmp_path / "a", ["config.json", "spaces.json", "agent.safetensors", "card.json"])
    files["config.json"]["world"]["hidden"] = 16
    storage.write_folder(tmp_path / "b", files)
    with pytest.raises(CorruptError, match=r"weights do not fit the configuration, \d+ differ: world\."):
        Agent.load(tmp_path / "b")


def test_weights_that_do_not_fit_change_nothing() -> None:
    made, other = agent("vector"), agent("vector", seed=3)
    before = made.version
    weights = other.weights() | {"world.core.norm.weight": torch.zeros(3)}
    with pytest.raises(CorruptError):
        made.load_weights(weights)
    assert made.version == before


def test_load_weights_copies_into_place() -> None:
    made, other = agent("vector"), agent("vector")
    assert made.version != other.version
    parameter = made.world.core.norm.weight
    made.load_weights(other.weights())
    assert made.version == other.version and made.world.core.norm.weight is parameter
    with torch.no_grad():
        other.world.core.norm.weight.add_(1)
    assert made.version != other.version


def test_version_changes_with_any_weight_and_with_nothing_else() -> None:
    made = agent("vector")
    version = made.version
    assert len(version) == 64 and made.version == version
    made.act(arrays("vector"))
    made.card = {"x": 1}
    assert made.version == version
    for name, value in (("world", made.world.core.norm.weight), ("policy", made.policy.scale.low)):
        with torch.no_grad():
            value.view(-1)[0] += 1e-6
        assert made.version != version, name
        version = made.version


def test_agents_of_one_seed_are_one_agent() -> None:
    def born(seed: int) -> str:
        torch.manual_seed(seed)
        return build(config(), Spaces(SEEN["both"], False, 2), torch.float32).version

    assert born(1) == born(1) != born(2)


# -- environments -----------------------------------------------------------------------------------------------------


def test_drives_the_environment_it_names() -> None:
    made = build(config(), Spaces({"vector": (2,)}, False, 2), torch.float32)
    env = made.make_env(length=6)
    obs, _ = env.reset(seed=1)
    done, steps = False, 0
    while not done:
        obs, _, terminated, truncated, _ = env.step(made.act(obs, is_first=steps == 0, sample=True))
        done, steps = terminated or truncated, steps + 1
    assert steps == 6 and Spaces.of(env) == made.spaces


def test_wrap_refuses_another_environment() -> None:
    import gymnasium as gym

    import worldmodel.envs  # noqa: F401  (registers the toy worlds)

    made = build(config(), Spaces({"vector": (2,)}, False, 2), torch.float32)
    assert Spaces.of(made.wrap(gym.make("worldmodel/Echo-v0"))) == made.spaces
    with pytest.raises(UsageError, match=r"gives Spaces.*\(3,\).*was trained on Spaces.*\(2,\)"):
        made.wrap(gym.make("worldmodel/Echo-v0", size=3))


def test_repr_tells_what_it_sees_and_does() -> None:
    text = repr(agent("both", discrete=True))
    assert "image (16, 16, 3)" in text and "3 choices" in text and "encoder" in text and "critic" in text
    assert "3 continuous actions" in repr(agent("vector")) and json.dumps(text)


def test_bug_repr_of_a_small_agent_showed_no_parameters() -> None:
    made = agent("both")
    text = repr(made)
    assert "0.00 M" not in text
    parameters = sum(p.numel() for p in made.policy.actor.parameters())
    assert parameters < 10_000 and re.search(rf"^  actor +{parameters:,}$", text, re.M)
    sizes = [line[len("  encoder   ") :] for line in text.splitlines()[1:]]
    assert len({len(line) for line in sizes}) == 1, "aligned"
    shown = {0: "0", 9_999: "9,999", 31_234: "31 k", 999_499: "999 k", 999_500: "1.00 M", 5_228_000: "5.23 M"}
    assert {count: module._short(count) for count in shown} == shown


def test_expected_sizes_of_the_state() -> None:
    made = agent("vector")
    made.start(5)
    expect_equal(made.state, torch.zeros(5, 16 + 12))
    assert made.action.shape == (5, ACTIONS) and made.device.type == "cpu"
