"""One dream as an environment: what gymnasium asks of it, and that it dreams what the world says."""

from __future__ import annotations

import pickle
import random
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from dream_helpers import ACTIONS, SPACES, Counter, counted, dreamer, same, starts_for, stored
from gymnasium.utils.env_checker import check_env
from tiny import world

import worldmodel.envs  # noqa: F401  (registers the dream)
from worldmodel.envs import Spaces
from worldmodel.envs.dream import DreamEnv
from worldmodel.envs.dream_vector import DreamVectorEnv
from worldmodel.envs.starts import Starts
from worldmodel.errors import NumericalError, UsageError

OBS = ["pixels", "latent", "both"]


def counter(chance: float = 1.0, images: bool = False, spaces: Spaces = SPACES, **options: Any) -> DreamEnv:
    options.setdefault("obs", "latent")
    return DreamEnv(Counter(chance, images), spaces=spaces, starts=counted(), **options)


def ones(value: float = 0.5) -> np.ndarray:
    return np.full(ACTIONS, value, np.float32)


def told(env: gym.Env, seed: int, steps: int = 6) -> list[Any]:
    """A dream of random actions, all that it returned."""
    env.action_space.seed(5)
    out: list[Any] = [env.reset(seed=seed)]
    for _ in range(steps):
        out.append(env.step(env.action_space.sample()))
        if out[-1][2] or out[-1][3]:
            break
    return out


# -- what gymnasium and its clients ask -------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize("obs", OBS)
def test_gymnasium_has_nothing_to_say(tmp_path: Path, obs: str, discrete: bool) -> None:
    path = stored(tmp_path, "both", discrete)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("worldmodel/Dream-v0", checkpoint=path, obs=obs)
        check_env(env.unwrapped)
        check_env(gym.make("worldmodel/Dream-v0", checkpoint=path, obs=obs, render_mode="rgb_array").unwrapped)
        env.close()
        env.close()


def test_an_agent_in_memory_passes_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("worldmodel/Dream-v0", checkpoint=dreamer("vector"), obs="latent").unwrapped)


@pytest.mark.parametrize("obs", OBS)
def test_observations_are_what_they_are_called(obs: str) -> None:
    made = dreamer("image")
    env = DreamEnv(made, obs=obs, render_mode="rgb_array")
    seen, _ = env.reset(seed=3, options={"start": 4})
    state = made.starts.states[4].float()[None]
    picture = (made.world.decode(state)[0].permute(1, 2, 0).detach().numpy() * 255).round()
    latent = made.world.features(state)[0].numpy()
    got = seen if obs == "both" else {obs: seen}
    assert got.keys() == ({"pixels", "latent"} if obs == "both" else {obs})
    if "pixels" in got:
        assert got["pixels"].dtype == np.uint8 and np.abs(got["pixels"] - picture).max() <= 1
        assert np.array_equal(env.render(), got["pixels"])
    if "latent" in got:
        assert got["latent"].dtype == np.float32 and np.array_equal(got["latent"], latent)
    bound = env.observation_space["latent"] if obs == "both" else env.observation_space
    assert bound.is_bounded() and (obs == "pixels" or bound.high.max() == 1)


def test_features_of_a_world_that_promises_nothing_are_clipped_to_finite_bounds() -> None:
    far = Starts.of([(torch.tensor([5e6, -2e6, 1.5]), 0, 0)])
    env = DreamEnv(Counter(), spaces=SPACES, starts=far, obs="latent")
    assert env.reset()[0].tolist() == [1e6, -1e6, 1.5]
    assert env.observation_space.high.tolist() == [1e6] * 3


def test_grey_pictures_are_rendered_in_colour() -> None:
    env = counter(images=True, obs="pixels", render_mode="rgb_array")
    seen, _ = env.reset(options={"start": 1})
    assert seen.shape == (4, 4, 1) and env.render().shape == (4, 4, 3) and (env.render() == seen).all()
    assert seen[0, 0, 0] == 51  # 2 steps of 10


# -- what is dreamed --------------------------------------------------------------------------------------------------


def test_rewards_are_those_of_arriving_and_the_horizon_truncates() -> None:
    env = counter(horizon=4)
    seen, info = env.reset(seed=0, options={"start": 2})
    assert seen[:2].tolist() == [3, 0]
    assert info == {"cont_prob": 1.0, "raw_reward": 0.0, "start": 2, "start_episode": 7, "start_step": 2,
                    "imagined_steps": 0, "temperature": 1.0}  # fmt: skip
    for t in range(1, 5):
        seen, reward, terminated, truncated, info = env.step(ones())
        assert seen[:2].tolist() == [3 + t, 1.5 * t] and reward == 10 * (3 + t) + 1.5
        assert (terminated, truncated) == (False, t == 4)
        assert info["imagined_steps"] == t and info["raw_reward"] == reward
    with pytest.raises(UsageError, match="is over: call reset first"):
        env.step(ones())
    env.reset()
    assert env.step(ones())[4]["imagined_steps"] == 1


def test_actions_are_clipped_as_the_task_clips_them() -> None:
    env = counter()
    env.reset(seed=0, options={"start": 0})
    assert env.step(ones(3.0))[1] == 20 + 3


def test_choices_are_one_hot_for_the_world() -> None:
    made = dreamer("vector", discrete=True)
    env = DreamEnv(made, obs="latent", cont="ignore")
    taken: list[torch.Tensor] = []
    imagine = made.world.imagine
    made.world.imagine = lambda state, action: (taken.append(action.clone()), imagine(state, action))[1]
    env.reset(seed=0)
    for choice in (0, np.int64(2), 1):
        env.step(choice)
    assert [action[0].tolist() for action in taken] == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_termination_follows_the_continue_head() -> None:
    env = counter(chance=0.3, horizon=1000)
    ended = 0
    env.reset(seed=1)
    for _ in range(400):
        _, _, terminated, truncated, info = env.step(ones())
        assert info["cont_prob"] == pytest.approx(0.3) and not truncated
        if terminated:
            ended += 1
            env.reset()
    assert 0.6 < ended / 400 < 0.8
    for chance, end in ((0.49, True), (0.51, False)):
        env = counter(chance=chance, cont="threshold")
        env.reset(seed=1)
        assert env.step(ones())[2] is end
    env = counter(chance=0.0, cont="ignore", horizon=30)
    env.reset(seed=1)
    assert [env.step(ones())[2:4] for _ in range(30)] == [(False, False)] * 29 + [(False, True)]


def test_how_dreams_end_does_not_change_what_is_dreamed() -> None:
    """The chance of ending is drawn in every mode: one seed gives one dream."""
    dreams = [
        [step[0] for step in told(counter(0.9, cont=cont), seed=2)[1:]] for cont in ("sample", "threshold", "ignore")
    ]
    shared = min(map(len, dreams))
    assert shared >= 3 and all(same(dream[:shared], dreams[0][:shared]) for dream in dreams)


def test_disagreement_costs_its_penalty() -> None:
    env = counter(penalty=2.0)
    _, info = env.reset(seed=0, options={"start": 0})
    assert info["disagreement"] == 0
    _, reward, _, _, info = env.step(ones())
    assert info["disagreement"] == 1.5 and info["raw_reward"] == 21.5 and reward == 21.5 - 3.0


def test_a_colder_dream_is_likelier() -> None:
    """Near 0 only the likeliest latents are left, whatever the seed; warmer ones differ."""
    made = dreamer("vector")

    def final(temperature: float, seed: int) -> np.ndarray:
        env = DreamEnv(made, obs="latent", cont="ignore", temperature=temperature)
        env.reset(seed=seed, options={"start": 0})
        return [env.step(ones()) for _ in range(4)][-1][0]

    assert np.array_equal(final(1e-6, 1), final(1e-6, 2))
    assert not np.array_equal(final(1.0, 1), final(1.0, 2))
    assert any(not np.array_equal(final(1.0, seed), final(3.0, seed)) for seed in range(3))


# -- seeds ------------------------------------------------------------------------------------------------------------


def test_a_seed_is_a_dream_and_the_world_outside_does_not_matter() -> None:
    made = dreamer("image")
    torch.manual_seed(1)
    first = told(DreamEnv(made, obs="both", cont="ignore"), seed=0)
    torch.manual_seed(2)
    random.seed(3)
    np.random.seed(4)
    state = torch.get_rng_state()
    assert same(told(DreamEnv(made, obs="both", cont="ignore"), seed=0), first)  # 0 is a seed
    assert torch.equal(torch.get_rng_state(), state)
    other = told(DreamEnv(made, obs="both", cont="ignore"), seed=1)
    assert not same(other, first)
    env = DreamEnv(made, obs="both", cont="ignore")
    env.reset(seed=9)
    unseeded = told(env, None)
    env.reset(seed=9)
    assert same(told(env, None), unseeded)


def test_noise_of_another_shape_is_not_the_worlds_outside_either() -> None:
    """A world that draws what is no row for a trajectory: still a function of the seed."""

    class Odd(Counter):
        def imagine(self, state: torch.Tensor, action: torch.Tensor) -> Any:
            step = super().imagine(state, action)
            return step._replace(reward=step.reward + torch.randn(()))

    def rewards(outside: int) -> list[float]:
        torch.manual_seed(outside)
        before = torch.get_rng_state()
        env = DreamEnv(Odd(), spaces=SPACES, starts=counted(), obs="latent")
        env.reset(seed=3)
        out = [env.step(ones())[1] for _ in range(3)]
        assert torch.equal(torch.get_rng_state(), before)
        return out

    assert rewards(1) == rewards(2) and rewards(1)[0] % 1 != rewards(1)[1] % 1


def test_seeds_choose_among_all_starts() -> None:
    env = counter()
    assert {env.reset(seed=seed)[1]["start"] for seed in range(30)} == {0, 1, 2}
    noise = set()
    for seed in range(5):
        env.reset(seed=seed, options={"start": 1})
        noise.add(float(env.step(ones())[0][2]))
    assert len(noise) == 5  # one start, many dreams


def test_results_are_never_written_to_again() -> None:
    env = DreamEnv(dreamer("image"), obs="both", cont="ignore")
    kept = told(env, seed=0)
    copy = pickle.loads(pickle.dumps(kept))
    for one in kept:
        assert not np.shares_memory(one[0]["latent"], env.dreams.states.numpy())
    env.step(ones())
    env.reset()
    assert same(kept, copy)


# -- travelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["path", "memory"])
def test_pickles_and_dreams_the_same(tmp_path: Path, where: str) -> None:
    env = DreamEnv(stored(tmp_path) if where == "path" else dreamer(), obs="both", horizon=7, cont="threshold")
    data = pickle.dumps(env)
    assert where == "memory" or len(data) < 1000
    assert same(told(pickle.loads(data), seed=1), told(env, seed=1))


def test_ten_thousand_random_steps_stay_finite_and_leave_nothing_behind() -> None:
    env = DreamVectorEnv(dreamer("image"), 20, rows=20, obs="latent", horizon=30)
    env.action_space.seed(0)

    def walk(steps: int) -> None:
        env.reset(seed=1)
        for _ in range(steps):
            seen, reward, _, _, infos = env.step(env.action_space.sample())
            assert np.isfinite(seen).all() and np.isfinite(reward).all() and env.observation_space.contains(seen)
            assert (infos["cont_prob"] >= 0).all() and (infos["cont_prob"] <= 1).all()

    walk(50)
    resident = memory()
    tracemalloc.start()
    walk(20)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    walk(500)
    tracemalloc.start()
    walk(20)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 20_000
    assert memory() - resident < 8e6


def memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


# -- wrong ways -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 1}, "horizon must be an integer of at least 2, got 1"),
        ({"horizon": 5.0}, "horizon must be an integer"),
        ({"obs": "image"}, "obs must be one of 'pixels', 'latent', 'both', got 'image'"),
        ({"cont": "never"}, "cont must be one of 'sample', 'threshold', 'ignore'"),
        ({"rows": 6}, "rows must be 1 or a multiple of 4, got 6"),
        ({"penalty": -1.0}, "penalty must be at least 0"),
        ({"penalty": 1.0}, "offers `disagreement.*RSSM does not; leave the penalty at 0"),
        ({"temprature": 1.0}, "no option 'temprature'; did you mean 'temperature'"),
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"render_mode": "human"}, "render_mode must be None or 'rgb_array'"),
        ({"starts": torch.randn(4, 28)}, "must be real posterior states, as `collect_starts.*not a made-up Tensor"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DreamEnv(dreamer(), **options)


def test_what_a_world_cannot_do_is_said() -> None:
    with pytest.raises(UsageError, match="not trained on images and cannot draw its dreams: use obs='latent'"):
        DreamEnv(dreamer("vector"))
    with pytest.raises(UsageError, match="cannot draw"):
        DreamEnv(dreamer("vector"), obs="latent", render_mode="rgb_array")
    with pytest.raises(UsageError, match="Counter cannot be sampled at a temperature"):
        counter(temperature=0.5)
    with pytest.raises(UsageError, match=r"give spaces=Spaces\(...\) and starts=collect_starts"):
        DreamEnv(world("vector"), obs="latent")
    with pytest.raises(UsageError, match="actions='task' needs the agent"):
        counter(actions="task")
    with pytest.raises(UsageError, match="must be the path of an agent, an Agent or a WorldModel, not 7"):
        DreamEnv(7)
    with pytest.raises(UsageError, match=r"no agent in '.*nowhere'"):
        DreamEnv("nowhere")


def test_wrong_calls_are_named() -> None:
    env = counter()
    with pytest.raises(UsageError, match="has not begun or is over: call reset first"):
        env.step(ones())
    for options, message in (({"start": 3}, "from 0 to 2, got 3"), ({"start": -1}, "got -1"),
                             ({"strat": 1}, "knows the option 'start', not 'strat'")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            env.reset(options=options)
    env.reset(seed=0)
    for action, message in ((ones()[:2], "must be 3 numbers"), (ones(np.nan), "must be finite")):
        with pytest.raises(UsageError, match=message):
            env.step(action)
    env = counter(spaces=Spaces({"vector": (5,)}, True, 3))
    env.reset(seed=0)
    for action in (3, -1, 0.5, np.array([0, 1, 0])):
        with pytest.raises(UsageError, match="an integer from 0 to 2"):
            env.step(action)


def test_a_world_that_breaks_is_noticed_at_once() -> None:
    made = Counter()
    env = DreamEnv(made, spaces=SPACES, starts=counted(), obs="latent")
    env.reset(seed=0, options={"start": 1})
    made.chance = float("nan")
    with pytest.raises(NumericalError, match=r"from start 1 paid .* at imagined step 1 \(continue nan\)"):
        env.step(ones())


def test_starts_of_another_world_are_refused() -> None:
    from worldmodel.errors import CorruptError

    with pytest.raises(CorruptError, match=r"shape \(3, 3\) for a world with states of 28 numbers"):
        DreamEnv(dreamer(), starts=counted())
    assert len(DreamEnv(dreamer("vector"), obs="latent", starts=starts_for(world("vector"), "vector", 4)).starts) == 4
