"""The best few evaluations of a run meet once more at its end, on tracks that have not chosen anything yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_helpers import Judge, Told, flip, opened, signal_after, tiny, told

from worldmodel import storage
from worldmodel.agent import Agent
from worldmodel.config import TRACKS, Config
from worldmodel.errors import UsageError
from worldmodel.train.check import check

OFTEN = 1e-6
"""Minutes between evaluations: one after every step of the loop."""


def config(**changes: object) -> Config:
    """Four evaluations: after updates 1, 2 and 3, and the last after 4."""
    return tiny(**{"updates": 4, "pretrain": 4, "eval_minutes": OFTEN, "finalists": 2} | changes)


def kept(out: Path) -> dict[str, float]:
    """Scores of what is in RUN/finalists."""
    return {
        folder.name: storage.read_folder(folder)["card.json"]["selection"]["mean"]
        for folder in sorted((out / "finalists").iterdir())
    }


@pytest.mark.parametrize(
    ("last", "winner"), [([7.0, 2.0], "update-000002"), ([1.0, 2.0], "update-000003"), ([3.0, 3.0], "update-000002")]
)
def test_the_best_two_meet_and_the_better_one_stays(
    tmp_path: Path, judge: Judge, last: list[float], winner: str
) -> None:
    judge.scores = [4.0, 9.0, 8.0, 6.0, *last]
    with opened(config(), tmp_path) as run:
        result = run.train()
        run.train()  # nobody is judged: the scores are used up
    assert not judge.scores and kept(tmp_path) == {"update-000002": 9.0, "update-000003": 8.0}
    assert Agent.load(tmp_path).version == Agent.load(tmp_path / "finalists" / winner).version
    assert result["best"]["score"] == max(last) and result["best"]["updates"] == int(winner[-1])
    card = Agent.load(tmp_path).card
    assert card["selection"]["mean"] == max(last), "luck in the evaluation that chose is not carried on"
    assert card["cost"]["updates"] == int(winner[-1])
    first = TRACKS["select"]
    assert judge.seeds == [*[first, first + 1] * 4, *[*range(first + 2, first + 10)] * 2]
    finals = [(line["agent"], line["mean"]) for line in told(tmp_path, "final")]
    assert finals == [("best", last[0]), ("finalists/update-000003", last[1])]


def test_a_fresh_policy_meets_them_too(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [4.0, 9.0, 8.0, 6.0, 1.0, 2.0, 3.0]
    with opened(config(relearn=2), tmp_path) as run:
        assert run.train()["best"]["score"] == 3.0
    assert [line["agent"] for line in told(tmp_path, "final")] == ["best", "finalists/update-000003", "fresh"]
    assert Agent.load(tmp_path).card["learning"].startswith("a fresh policy")


def test_without_finalists_nothing_is_kept_and_nobody_meets(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [4.0, 9.0, 8.0, 6.0]
    with opened(config(finalists=1), tmp_path) as run:
        assert run.train()["best"]["score"] == 9.0
    assert not (tmp_path / "finalists").exists() and not told(tmp_path, "final")


def test_a_signal_among_them_abandons_the_meeting_and_the_next_session_holds_it(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [4.0, 9.0, 8.0, 6.0, 1.0, 1.0, 2.0]
    with opened(config(), tmp_path) as run:
        signal_after(run, "final")
        result = run.train()
    assert (result["exit_code"], result["best"]["score"]) == (75, 9.0)
    with opened(config(), tmp_path) as run:
        assert run.train()["best"]["score"] == 2.0


def test_a_damaged_finalist_is_told_and_left_out(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [4.0, 9.0, 8.0, 6.0, 1.0, 2.0]
    with opened(config(), tmp_path) as run:
        run.train()
    flip(tmp_path / "finalists" / "update-000003" / "agent.safetensors")
    judge.scores, progress = [7.0, 5.0, 6.0], Told()
    with opened(config(updates=5, eval_minutes=99.0), tmp_path, progress) as run:
        best = run.train()["best"]
    assert (best["score"], best["updates"]) == (6.0, 2), "the new one has 5 there"
    assert any("update-000003 is no finalist any more" in warning for warning in progress.warnings)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match=r"--finalists 3 are chosen by evaluations: .*, or --finalists 1$"):
        check(tiny(finalists=3, eval_minutes=0.0))
    with pytest.raises(UsageError, match="--finalists must be at least 1, not 0"):
        check(tiny(finalists=0, eval_minutes=1.0))
