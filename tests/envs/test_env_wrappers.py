"""What stands between a gymnasium environment and the agent, each with numbers."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make, wrap
from worldmodel.envs.images import area_taps, resize
from worldmodel.envs.wrappers import ActionRepeat, Observations, SignedThrottle, UnitActions
from worldmodel.errors import UsageError


class Script(gym.Env):
    """Pays 1, 2, 3 ... and ends at frame `last`; remembers the actions it got."""

    def __init__(self, observation: gym.Space | None = None, action: gym.Space | None = None, last: int = 10) -> None:
        self.observation_space = Box(-1, 1, (3,), np.float32) if observation is None else observation
        self.action_space = Discrete(2) if action is None else action
        self.last, self.actions = last, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.frame = 0
        return self.observation_space.sample(), {"start": True}

    def step(self, action):
        self.frame += 1
        self.actions.append(action)
        observation = self.observation_space.sample()
        return observation, float(self.frame), self.frame == self.last, False, {"frame": self.frame}


class Drawer(Script):
    """Shows the frame in which it was last drawn, and counts its drawings."""

    skip_observation = False
    drawn = 0

    def observe(self):
        self.drawn += 1
        self.picture = np.full(3, self.frame / 100, np.float32)
        return self.picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        _, *rest = super().step(action)
        return (self.picture if self.skip_observation else self.observe()), *rest


CONFIG = EnvConfig(action_repeat=1, image_size=0)


# action repeat


def test_action_repeat_sums_rewards_and_counts_frames():
    env = ActionRepeat(Script(last=10), 4)
    env.reset()
    assert env.step(1)[1:] == (1 + 2 + 3 + 4, False, False, {"frame": 4, "frames": 4})
    assert env.step(0)[1:] == (5 + 6 + 7 + 8, False, False, {"frame": 8, "frames": 4})
    assert env.step(1)[1:] == (9 + 10, True, False, {"frame": 10, "frames": 2})
    assert env.env.actions == [1] * 4 + [0] * 4 + [1] * 2


def test_action_repeat_stops_at_truncation():
    env = ActionRepeat(gym.wrappers.TimeLimit(Script(last=99), 6), 4)
    env.reset()
    env.step(0)
    assert env.step(0)[1:] == (5 + 6, False, True, {"frame": 6, "frames": 2})


def test_only_the_last_frame_is_drawn():
    env = ActionRepeat(gym.wrappers.TimeLimit(Drawer(last=10), 99), 4)
    env.reset()
    for frame in (4, 8, 10):  # the episode ends in a frame that was to be hidden: it is shown after all
        observation = env.step(0)[0]
        np.testing.assert_array_equal(observation, np.full(3, frame / 100, np.float32))
    assert env.unwrapped.drawn == 1 + 3
    assert not env.unwrapped.skip_observation


def test_a_wrapper_that_sees_observations_sees_all_of_them():
    env = gym.wrappers.FrameStackObservation(Drawer(last=99), 3)
    env = ActionRepeat(env, 4)
    env.reset()
    np.testing.assert_allclose(env.step(0)[0][:, 0], [0.02, 0.03, 0.04])


def test_a_failing_step_does_not_leave_the_environment_blind():
    class Broken(Drawer):
        def step(self, action):
            raise RuntimeError("broken")

    env = ActionRepeat(Broken(), 4)
    env.reset()
    with pytest.raises(RuntimeError, match="broken"):
        env.step(0)
    assert not env.unwrapped.skip_observation


def test_car_racing_repeated_four_times_is_stock_repeated_four_times():
    pytest.importorskip("Box2D")
    stock = ActionRepeat(SignedThrottle(gym.make("CarRacing-v3")), 4)
    ours = make(EnvConfig(image_size=0))
    stock.reset(seed=1), ours.reset(seed=1)
    for t in range(20):
        action = np.array([np.sin(t), 0.9 - t / 15], np.float32)
        expected, found = stock.step(action), ours.step(action)
        np.testing.assert_array_equal(found[0]["image"], expected[0])
        assert found[1:] == expected[1:] and found[4] == {"frames": 4}


def test_car_racing_ends_with_a_picture_of_the_end():
    """1000 frames are 142 repeats of 7 and 6 more frames: the last picture is drawn though it ends a short repeat."""
    pytest.importorskip("Box2D")
    ours = make(EnvConfig(action_repeat=7, image_size=0))
    ours.reset(seed=1)
    steps, truncated = 0, False
    while not truncated:
        observation, _, terminated, truncated, info = ours.step(np.array([0.0, 0.0], np.float32))
        steps += 1
    assert (steps, info["frames"], terminated) == (143, 6, False)
    np.testing.assert_array_equal(observation["image"], ours.unwrapped.observe())
    assert ours.unwrapped.t == pytest.approx(1001 / 50)


# actions


@pytest.mark.parametrize(
    "action, expected",
    [((0.5, 0.25), (0.5, 0.25, 0)), ((-1, -0.75), (-1, 0, 0.75)), ((3, -4), (1, 0, 1)), ((0, 0), (0, 0, 0))],
)
def test_signed_throttle(action, expected):
    env = SignedThrottle(Script(action=Box(np.float32([-1, 0, 0]), np.float32([1, 1, 1]))))
    found = env.action(np.array(action))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
    assert env.action_space == Box(-1, 1, (2,), np.float32)


def test_car_racing_gets_signed_throttle_and_others_do_not():
    pytest.importorskip("Box2D")
    assert Spaces.of(wrap(gym.make("CarRacing-v3"), CONFIG)).actions == 2
    discrete = wrap(gym.make("CarRacing-v3", continuous=False), CONFIG)
    assert Spaces.of(discrete) == Spaces({"image": (96, 96, 3)}, True, 5)
    same_shape = Script(action=Box(np.float32([-1, 0, 0]), np.float32([1, 1, 1])))
    assert Spaces.of(wrap(same_shape, CONFIG)).actions == 3


def test_unit_actions_are_clipped_and_rescaled():
    env = UnitActions(Script(action=Box(np.array([-2, 0.0]), np.array([2, 10.0]), dtype=np.float64)))
    assert env.action_space == Box(-1, 1, (2,), np.float32)
    np.testing.assert_allclose(env.action(np.array([-1, -1])), [-2, 0])
    np.testing.assert_allclose(env.action(np.array([0.5, 0])), [1, 5])
    np.testing.assert_array_equal(env.action(np.array([7, -9])), [2, 0])
    assert env.action(np.array([0, 0])).dtype == np.float64


def test_unbounded_actions_are_an_error():
    for low, high in [(-np.inf, np.inf), (0, np.inf)]:
        with pytest.raises(UsageError, match=r"Script has the unbounded action space Box.*give it bounds"):
            wrap(Script(action=Box(low, high, (2,), np.float32)), CONFIG)


def test_discrete_actions_count_from_zero():
    env = wrap(Script(action=Discrete(3, start=-1)), CONFIG)
    env.reset()
    env.step(np.int64(2))
    assert env.unwrapped.actions == [1]
    assert Spaces.of(env).actions == 3


@pytest.mark.parametrize(
    "space",
    [MultiDiscrete([2, 3]), MultiBinary(3), Tuple((Discrete(2),)), Box(-1, 1, (2, 2)), Box(0, 9, (2,), np.int32)],
)
def test_other_action_spaces_are_an_error(space):
    with pytest.raises(UsageError, match=r"Script has the action space .*; supported are .*TransformAction"):
        wrap(Script(action=space), CONFIG)


# observations


def test_lone_observations_get_names():
    image, vector = Box(0, 255, (8, 9, 3), np.uint8), Box(-np.inf, np.inf, (4,), np.float64)
    assert Spaces.of(wrap(Script(image), CONFIG)).observations == {"image": (8, 9, 3)}
    assert Spaces.of(wrap(Script(Box(0, 255, (8, 9), np.uint8)), CONFIG)).observations == {"image": (8, 9, 1)}
    env = wrap(Script(vector), CONFIG)
    observation, info = env.reset()
    assert observation["vector"].dtype == np.float32 and info == {"start": True}
    assert env.observation_space["vector"] == Box(-np.inf, np.inf, (4,), np.float32)


def test_dicts_keep_their_names_and_every_image_is_resized():
    space = Dict(
        camera=Box(0, 255, (20, 30, 3), np.uint8),
        depth=Box(0, 255, (40, 10), np.uint8),
        speed=Box(0, 1, (2,), np.float64),
    )
    env = wrap(Script(space), EnvConfig(action_repeat=1, image_size=16))
    spaces = Spaces.of(env)
    assert spaces.observations == {"camera": (16, 16, 3), "depth": (16, 16, 1), "speed": (2,)}
    assert set(spaces.images) == {"camera", "depth"} and set(spaces.vectors) == {"speed"}
    for observation in (env.reset()[0], env.step(0)[0]):
        assert env.observation_space.contains(observation)
        assert observation["camera"].flags.c_contiguous


def test_observation_values_pass_through():
    space = Box(0, 255, (4, 6), np.uint8)
    wrapper = Observations(Script(space), 0)
    value = space.sample()
    np.testing.assert_array_equal(wrapper.observation(value)["image"][..., 0], value)
    small = Observations(Script(space), 2).observation(value)["image"]
    np.testing.assert_array_equal(small, resize(value[..., None], 2, 2))


@pytest.mark.parametrize(
    "space, remedy",
    [
        (Box(0, 1, (8, 8, 3), np.float32), "images must be uint8"),
        (Box(0, 255, (3, 64, 64), np.uint8), "images must be .height, width, channels.: transpose"),
        (Box(0, 1, (8, 8), np.float32), "FlattenObservation"),
        (Box(0, 255, (2, 8, 8, 3), np.uint8), "FlattenObservation"),
        (Box(0, 1, (), np.float32), "FlattenObservation"),
        (Discrete(5), "FlattenObservation"),
        (MultiDiscrete([2, 3]), "FlattenObservation"),
        (Tuple((Discrete(2),)), "FlattenObservation"),
        (Dict(), "add an image or a vector"),
        (Dict(inner=Dict(a=Discrete(2))), "entry 'inner'.*FlattenObservation"),
    ],
)
def test_other_observation_spaces_are_an_error(space, remedy):
    with pytest.raises(UsageError, match=f"(?s)Script has .*{remedy}"):
        wrap(Script(space), CONFIG)


# resizing


def exact(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area averages the slow way: every row becomes `height` equal ones, then plain means; columns alike; float64."""
    h, w, c = image.shape
    rows = np.repeat(image.astype(np.float64), height, 0).reshape(height, h, w, c).mean(1)
    return np.repeat(rows, width, 1).reshape(height, width, w, c).mean(2)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (30, 200), (1, 1), (97, 13), (48, 96)])
@pytest.mark.parametrize("shape", [(96, 96, 3), (7, 31, 1)])
def test_resize_averages_areas(shape, size):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found, expected = resize(image, *size), exact(image, *size)
    assert found.dtype == np.uint8 and found.shape == (*size, shape[2]) and found.flags.c_contiguous
    assert np.abs(found - expected).max() <= 0.5 + 1e-4


def test_resize_keeps_flat_images_and_rounds_half_up():
    for level in (0, 1, 127, 254, 255):
        flat = np.full((96, 96, 3), level, np.uint8)
        np.testing.assert_array_equal(resize(flat, 64, 64), flat[:64, :64])
    image = np.array([[[0], [255]], [[0], [255]]], np.uint8)
    assert resize(image, 1, 1).item() == 128  # 127.5
    assert resize(image, 2, 2) is image


@pytest.mark.parametrize("source, target", [(96, 64), (64, 96), (100, 7), (3, 3), (1, 5)])
def test_area_taps_are_the_matrix_of_area_averaging(source, target):
    index, shares = area_taps(source, target)
    matrix = np.zeros((target, source))
    for taps, share in zip(index, shares[..., 0], strict=True):
        matrix[np.arange(target), taps] += share
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix.sum(0), target / source, atol=1e-6)  # every source pixel counts the same


# make


@pytest.mark.parametrize(
    "name, hint",
    [
        ("worldmodel/CarRacin-v3", "did you mean worldmodel/CarRacing-v3"),
        ("CartPol-v1", "did you mean CartPole-v1"),
        ("CartPole-v99", "did you mean CartPole-v1"),
        ("nowhere/Zzz-v0", "import the package that registers it first"),
        ("not an id", "Malformed"),
    ],
)
def test_unknown_environments_name_close_ones(name, hint):
    with pytest.raises(UsageError, match=hint):
        make(EnvConfig(id=name))


def test_missing_packages_are_named(monkeypatch):
    def missing():
        raise gym.error.DependencyNotInstalled('run `pip install "gymnasium[box2d]"`')

    gym.register("test/Missing-v0", lambda **_: missing())
    try:
        with pytest.raises(UsageError, match=r"'test/Missing-v0' needs a package .*gymnasium\[box2d\]"):
            make(EnvConfig(id="test/Missing-v0"))
    finally:
        del gym.registry["test/Missing-v0"]
    with pytest.raises(UsageError, match="'no_such_module:A-v0' cannot be imported"):
        make(EnvConfig(id="no_such_module:A-v0"))


def test_errors_name_the_id_of_a_registered_environment():
    with pytest.raises(UsageError, match="environment FrozenLake-v1 has the observation space Discrete"):
        make(EnvConfig(id="FrozenLake-v1"))


def test_bad_settings_are_errors():
    for config, words in [(EnvConfig(action_repeat=0), "action_repeat"), (EnvConfig(image_size=-1), "image_size")]:
        with pytest.raises(UsageError, match=words):
            wrap(Script(), config)


def test_make_passes_arguments_on():
    env = make(EnvConfig(id="worldmodel/Echo-v0"), size=3, discrete=True)
    assert Spaces.of(env) == Spaces({"vector": (3,)}, True, 3)


def test_spaces_travel_as_json():
    spaces = Spaces({"image": (64, 64, 3), "vector": (5,)}, False, 2)
    assert Spaces.from_dict(spaces.to_dict()) == spaces
    assert spaces.to_dict() == {"observations": {"image": [64, 64, 3], "vector": [5]}, "discrete": False, "actions": 2}
    with pytest.raises(UsageError, match="not wrapped"):
        Spaces.of(Script())
