"""Pictures: what is drawn where, and files that others can read."""

from __future__ import annotations

import json

import imageio_ffmpeg
import numpy as np
import pytest
from eval_fakes import beacon_agent
from PIL import Image

from worldmodel.errors import StorageError, UsageError
from worldmodel.eval import encode
from worldmodel.eval.draw import BLUE, GREEN, MUTED, RED, TEXT, Canvas, framed, signed_error, to_uint8, upscale
from worldmodel.eval.encode import write_png, write_video
from worldmodel.eval.fidelity import fidelity
from worldmodel.eval.films import (
    dream_films,
    drive_video,
    open_loop_clip,
    open_loop_video,
    side_by_side_video,
    worst_films,
)
from worldmodel.eval.openloop import open_loop
from worldmodel.eval.real import evaluate
from worldmodel.eval.recording import record
from worldmodel.eval.regrounded import reground
from worldmodel.eval.video import drive_frames, number, open_loop_frames, running_sum, side_by_side_frames, since, strip


@pytest.fixture(scope="module")
def agent():
    return beacon_agent()


@pytest.fixture(scope="module")
def episode(agent):
    return record(agent, 7, sample=True)


@pytest.fixture(scope="module")
def window(agent, episode):
    return open_loop(agent, episode, 1, 3, 8)


def count(picture, colour):
    return int((picture == np.array(colour)).all(-1).sum())


def ramp(n=6, height=40, width=60):
    """Frames that all differ: a bright column that moves."""
    frames = np.full((n, height, width, 3), 40, np.uint8)
    for i in range(n):
        frames[i, :, i * 8 : i * 8 + 8] = (220, 60, 90)
    return frames


def read_mp4(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    facts = next(reader)
    width, height = facts["size"]
    return facts, [np.frombuffer(raw, np.uint8).reshape(height, width, 3) for raw in reader]


def read_gif(path):
    frames, times = [], []
    with Image.open(path) as film:
        for i in range(film.n_frames):
            film.seek(i)
            frames.append(np.asarray(film.convert("RGB")))
            times.append(film.info["duration"])
        return frames, times, film.info["loop"]


@pytest.mark.parametrize(("height", "width"), [(40, 60), (41, 61), (96, 33 + 16)])
def test_mp4_can_be_read_back(tmp_path, height, width):
    frames = ramp(height=height, width=width)
    assert write_video(tmp_path / "deep" / "film.mp4", frames, 12.5) == tmp_path / "deep" / "film.mp4"
    facts, got = read_mp4(tmp_path / "deep" / "film.mp4")
    assert facts["size"] == (width + width % 2, height + height % 2)
    assert facts["fps"] == 12.5 and facts["codec"].startswith("h264") and "yuv420p" in facts["pix_fmt"]
    assert len(got) == len(frames)
    for sent, seen in zip(frames, got, strict=True):
        assert np.abs(sent.astype(int) - seen[:height, :width]).mean() < 8


def test_gif_can_be_read_back(tmp_path):
    frames = ramp()
    write_video(tmp_path / "film.GIF", frames, 12.5)
    got, times, loop = read_gif(tmp_path / "film.GIF")
    assert len(got) == 6 and times == [80] * 6 and loop == 0
    assert all(np.abs(a.astype(int) - b).max() <= 4 for a, b in zip(frames, got, strict=True))


@pytest.mark.parametrize(("fps", "expected"), [(12.5, 480), (30, 200), (25, 240)])
def test_gif_keeps_time(tmp_path, fps, expected):
    write_video(tmp_path / "film.gif", ramp(), fps)
    assert sum(read_gif(tmp_path / "film.gif")[1]) == expected


def test_gif_shows_every_colour_of_every_frame(tmp_path):
    """One palette serves all frames: colours that appear only late must be in it."""
    frames = np.zeros((40, 32, 32, 3), np.uint8)
    frames[20:] = (0, 200, 0)
    frames[-1] = (250, 0, 0)
    write_video(tmp_path / "film.gif", frames, 10)
    got, _, _ = read_gif(tmp_path / "film.gif")
    assert np.abs(got[-1].astype(int) - frames[-1]).max() < 8


@pytest.mark.parametrize("name", ["film.mp4", "film.gif"])
def test_a_failed_video_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"old")

    def full(path, frames, fps):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encode, "_write_mp4", full)
    monkeypatch.setattr(encode, "_write_gif", full)
    with pytest.raises(StorageError, match="No space left"):
        write_video(tmp_path / name, ramp(), 10)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"old"


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot write"):
        write_video(tmp_path / "file" / "film.mp4", ramp(), 10)


def test_bad_frames_are_refused(tmp_path):
    for path, frames, fps, words in [
        ("film.avi", ramp(), 10, r"\.mp4 or \.gif"),
        ("film.mp4", [], 10, "no frames"),
        ("film.mp4", ramp(), 0, "fps"),
        ("film.mp4", ramp().astype(np.float32), 10, "uint8"),
        ("film.mp4", ramp()[..., :2], 10, "uint8"),
        ("film.mp4", [*ramp(2), *ramp(2, height=44)], 10, "one size"),
    ]:
        with pytest.raises(UsageError, match=words):
            write_video(tmp_path / path, frames, fps)
    with pytest.raises(UsageError, match=r"\.png"):
        write_png(tmp_path / "strip.jpg", ramp()[0])


def test_upscaling_keeps_pixels_square_and_sharp():
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    big = upscale(picture, 13)  # 4 times: the longer side must fit
    assert big.shape == (8, 12, 3)
    assert all((big[y, x] == picture[y // 4, x // 4]).all() for y in range(8) for x in range(12))
    assert upscale(picture, 1).shape == (2, 3, 3)


def test_pictures_become_uint8_rgb():
    assert to_uint8(np.array([[[0.0], [0.5], [2.0], [np.nan]]])).tolist() == [[[v] * 3 for v in (0, 128, 255, 0)]]
    assert to_uint8(np.full((1, 1, 4), 7, np.uint8)).tolist() == [[[7, 7, 7]]]


def test_the_error_is_grey_where_right():
    truth = np.array([[[0, 128, 255]]], np.uint8)
    assert (to_uint8(signed_error(truth / 255, truth)) == 128).all()
    wrong = to_uint8(signed_error(np.array([[[1.0, 128 / 255, 0.0]]]), truth))
    assert wrong.tolist() == [[[255, 128, 0]]]


def test_frame_and_canvas():
    tile = framed(np.zeros((3, 5, 3), np.uint8), RED, 2)
    assert tile.shape == (7, 9, 3) and count(tile, RED) == 7 * 9 - 15
    canvas = Canvas(101, 20)
    canvas.signed_bar(0, 5, 101, 10, 0.5)
    bar = canvas.pixels[10]
    assert (bar[55:74] == BLUE).all() and not (bar[:50] == BLUE).all(-1).any() and not (bar[76:] == BLUE).all(-1).any()
    canvas = Canvas(90, 20)
    canvas.choice(0, 5, 90, 10, [0, 0, 1])
    blue = (canvas.pixels[10] == BLUE).all(-1)
    assert blue[61:85].all() and not blue[:60].any()


def test_open_loop_frames_say_what_is_what(window):
    frames = list(open_loop_frames(window, panel=128))
    assert len(frames) == 11
    assert all(f.shape == frames[0].shape and f.dtype == np.uint8 for f in frames)
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    tile = 128 + 8
    for i, frame in enumerate(frames):
        assert count(frame[:24], TEXT) > 100, "the panels are labelled"
        row = frame[52 + tile // 2]  # through the middle of the panels
        borders = [tuple(int(v) for v in row[16 + panel * (tile + 12)]) for panel in range(4)]
        assert borders[1] == GREEN, "the reconstruction is always grounded"
        assert borders[2] == (GREEN if i < 3 else RED), "the dream is grounded while in the context"
    assert (frames[3][: 52 + tile] != frames[4][: 52 + tile]).any()


def test_open_loop_panels_hold_the_pictures(window):
    frame = list(open_loop_frames(window, panel=128))[5]
    panel = slice(52 - 12, 52 - 12 + 128)
    found = False
    for y in range(30, 70):  # wherever the head ends
        panel = frame[y : y + 128, 20 : 20 + 128]
        found = found or (panel == upscale(window.truth[5], 128)).all()
    assert found


def test_frames_show_the_numbers(window):
    """The caption changes with the rewards alone."""
    from dataclasses import replace

    a = list(open_loop_frames(window, panel=128))[6]
    b = list(open_loop_frames(replace(window, reward_dream=window.reward_dream + 1), panel=128))[6]
    changed = np.flatnonzero((a != b).any((1, 2)))
    assert changed.min() > 180, "only the caption"
    later = list(open_loop_frames(replace(window, start=100), panel=128))[6]
    assert (a != later).any(), "the step is that of the episode"


def test_strip_has_a_column_for_every_horizon_it_reaches(window):
    picture = strip(window, (0, 1, 5, 8, 50), panel=64)
    narrower = strip(window, (0, 1), panel=64)
    assert picture.dtype == np.uint8 and picture.shape[0] == narrower.shape[0]
    assert picture.shape[1] > narrower.shape[1]
    assert strip(window, (0, 1, 5, 8), panel=64).shape == picture.shape  # 50 lies beyond
    column = picture[:, 156:].shape[1] // 4
    heads = [picture[:30, 156 + c * column : 156 + (c + 1) * column] for c in range(4)]
    assert count(heads[0], GREEN) > 20 and count(heads[0], RED) == 0
    assert all(count(head, RED) > 20 and count(head, GREEN) == 0 for head in heads[1:])
    assert count(picture[:, :150], TEXT) > 200, "the rows are labelled"


def test_strip_shows_the_right_moments(window):
    picture = strip(window, (0, 5), panel=64)
    for i in (window.context - 1, window.context + 4):
        tile = upscale(window.truth[i], 64)
        places = [
            (y, x) for y in range(50, 70) for x in range(150, picture.shape[1] - 64)
            if (picture[y : y + 64, x : x + 64] == tile).all()
        ]  # fmt: skip
        assert len(places) == 1


def test_driving_and_side_by_side(agent, episode):
    driving = list(drive_frames(episode, panel=128))
    assert len(driving) == len(episode) and driving[0].shape[0] % 2 == 0
    assert count(driving[0], BLUE) > 0, "the action is shown"
    assert count(driving[-1], BLUE) == 0, "there is none at the end"
    view = [np.full((40, 60, 3), 200, np.uint8)] * len(episode)
    assert count(next(drive_frames(episode, view, panel=128)), (200, 200, 200)) >= 80 * 120
    film = list(side_by_side_frames(reground(agent, episode, 4), panel=128))
    assert len(film) == len(episode)
    for i, frame in enumerate(film):
        assert (count(frame, GREEN) > 100) == (i % 4 == 0)
        assert (count(frame, RED) > 100) == (i % 4 != 0)


def test_films_from_one_call(tmp_path, agent):
    episode = drive_video(agent, tmp_path / "drive.mp4", 7)
    facts, frames = read_mp4(tmp_path / "drive.mp4")
    assert len(frames) == len(episode) == 13 and facts["fps"] == 10  # the environment's real time
    side_by_side_video(agent, tmp_path / "beside.gif", episode, every=4)
    assert sum(read_gif(tmp_path / "beside.gif")[1]) == 1300
    open_loop_video(agent, tmp_path / "dream.mp4", episode, 0, 3, 5, fps=5)
    facts, frames = read_mp4(tmp_path / "dream.mp4")
    assert len(frames) == 8 and facts["fps"] == 5


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_dream_films(tmp_path, agent, suffix):
    result = dream_films(agent, tmp_path / "out", 7, start=1, context=3, horizon=8, suffix=suffix)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    names = [f"openloop-7.{suffix}", "strip-7.png", f"beside-7.{suffix}"]
    assert result["files"] == [str(tmp_path / "out" / name) for name in names]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(names)
    with Image.open(result["files"][1]) as picture:
        window = open_loop(agent, record(agent, 7), 1, 3, 8)
        assert (np.asarray(picture) == strip(window)).all()
    if suffix == "mp4":
        assert [len(read_mp4(result["files"][i])[1]) for i in (0, 2)] == [11, 12]
    assert result["fidelity"]["horizons"]["5"]["dream_psnr"] == pytest.approx(60)
    assert (result["agent_version"], result["env"], result["seed"]) == (agent.version, "eval_fakes:Beacon-v0", 7)
    with pytest.raises(UsageError, match="the episode has 13"):
        dream_films(agent, tmp_path / "out", 7, start=1, context=3, horizon=10)
    with pytest.raises(UsageError, match="avi"):
        dream_films(agent, tmp_path / "out", 7, suffix="avi")


def test_bug_the_film_of_an_episode_showed_another_one(tmp_path, agent, monkeypatch):
    """An agent that acts by how many rows it is given, as the last bits of any product do."""
    act = type(agent.policy).act
    monkeypatch.setattr(type(agent.policy), "act", lambda self, f, sample=True: act(self, f, sample).roll(len(f), -1))
    result = evaluate(agent, range(40, 45))
    alone = [record(agent, seed).rewards.sum() for seed in range(40, 45)]
    assert not np.allclose(alone, result.returns)
    films = list(worst_films(agent, result, tmp_path, 2))
    assert [returned for _, returned in films] == sorted(result.returns)[:2]


def test_the_clip_of_a_training_run(agent, episode):
    other = record(agent, 9)  # 4 steps: the shorter stretch
    joined = {
        name: np.concatenate([getattr(other, name), getattr(episode, name)])
        for name in ("actions", "rewards", "is_first", "is_terminal")
    }
    obs = {"image": np.concatenate([other.image, episode.image])}
    frames, metrics = open_loop_clip(agent, obs, **joined, context=3, horizons=(1, 5, 15))
    assert frames.shape[0] == 13 and frames.dtype == np.uint8 and frames.shape[-1] == 3
    assert set(metrics) == {f"{m}_{k}" for m in ("psnr", "persistence_psnr", "reward_error") for k in (1, 5)}
    quality = fidelity(open_loop(agent, episode, 0, 3, 10))
    assert metrics["psnr_5"] == pytest.approx(60) == quality.dream_psnr[4]
    assert metrics["persistence_psnr_5"] == pytest.approx(quality.persistence_psnr[4])
    assert metrics["reward_error_5"] == 0
    with pytest.raises(UsageError, match="no room to dream"):
        open_loop_clip(agent, obs, **joined, context=13)


def test_sums_count_the_imagined_steps_alone():
    assert running_sum(np.array([np.nan, 5, 1, 2, 4]), 2).tolist() == [0, 0, 1, 3, 7]


def test_numbers_for_people():
    assert [number(v) for v in (0.0, -0.04, 3.25, -12.345, float("nan"))] == ["+0.0", "+0.0", "+3.2", "-12.3", "-"]
    assert since(0, 0.08) == "grounded in the true frame"
    assert since(1, None) == "imagined 1 step"
    assert since(12, 0.08) == "imagined 12 steps (0.96 s)"
    assert MUTED != TEXT
