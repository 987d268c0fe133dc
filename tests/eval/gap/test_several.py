"""Two reports side by side, and many ranked: pure functions of gap.json, and the command around them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import gap_fakes
import numpy as np
import pytest
import torch

from worldmodel import storage
from worldmodel.cli import main
from worldmodel.errors import CorruptError, UsageError
from worldmodel.eval.gap import several
from worldmodel.eval.gap.measure import Scale, measure

SCALE = Scale("small", episodes=9, starts=12, horizon=8, open_loop=15, windows=12, every=(), temperatures=())


@pytest.fixture(scope="module")
def result() -> dict:
    agent = gap_fakes.agent(gap_fakes.Noisy(2.0), gap_fakes.Critic())
    return json.loads(json.dumps(measure(agent, SCALE, seeds=range(9))))


def shifted(result: dict, real: float = 0.0, dream: float = 0.0, tracks: int = 9) -> dict:
    """The report of an agent that earns `real` more in every episode, and is promised `dream` more, on some tracks."""
    out = copy.deepcopy(result)
    for i, episode in enumerate(out["real"]["episodes"]):
        episode["return"] += real * (i < tracks)
    for point in out["transfer"]["points"]:
        point["real"] += real
        point["dream"] += dream
        point["gap"] += dream - real
    out["gap"]["mean"] += (dream - real) / out["transfer"]["units"]
    return out


def row(comparison: dict, name: str) -> dict:
    return next(row for row in comparison["rows"] if row["name"].startswith(name))


def test_the_change_is_paired_by_track(result: dict) -> None:
    """The same shift on every track is certain, however much the tracks differ."""
    found = several.compare(result, shifted(result, real=-3.0))
    change = row(found, "return of real episodes")["change"]
    assert change["mean"] == pytest.approx(-3) and change["low"] == pytest.approx(-3) == change["high"]
    assert change["clusters"] == 9
    assert (
        "return of real episodes" in found["regressions"] and "real return over as many steps" in found["regressions"]
    )
    means = [np.mean([e["return"] for e in r["real"]["episodes"]]) for r in (result, shifted(result, real=-3.0))]
    assert [row(found, "return of real episodes")[side] for side in "ab"] == pytest.approx(means)


def test_better_or_the_same_is_no_regression(result: dict) -> None:
    assert several.compare(result, result)["regressions"] == []
    assert several.compare(result, shifted(result, real=3.0, dream=3.0))["regressions"] == []
    assert (
        several.compare(result, shifted(result, real=-3.0, tracks=1))["regressions"].count("return of real episodes")
        == 0
    )


def test_a_larger_gap_is_a_regression_whatever_its_direction(result: dict) -> None:
    base = shifted(result, dream=50.0)
    assert several.compare(base, shifted(result, dream=60.0))["regressions"] == ["normalised gap g, its size"]
    low = shifted(result, dream=-50.0)
    assert several.compare(low, shifted(result, dream=-60.0))["regressions"] == ["normalised gap g, its size"]
    assert several.compare(base, low)["regressions"] == []


def test_tracks_that_only_one_of_them_drove_do_not_count(result: dict) -> None:
    other = shifted(result, real=1.0)
    del other["real"]["episodes"][:4]
    other["real"]["episodes"][0]["seed"] = 77
    change = row(several.compare(result, other), "return of real episodes")["change"]
    assert change["clusters"] == 4 and change["mean"] == pytest.approx(1)
    for episode in other["real"]["episodes"]:
        episode["seed"] += 1000
    with pytest.raises(UsageError, match="no track in common"):
        several.compare(result, other)


@pytest.mark.parametrize("what", ["environment", "horizon", "action mode"])
def test_reports_of_different_things_are_refused(result: dict, what: str) -> None:
    other = copy.deepcopy(result)
    if what == "environment":
        other["provenance"]["task"]["env_id"] = "Other-v0"
    elif what == "horizon":
        other["transfer"]["horizon"] += 1
    else:
        other["provenance"]["mode"] = "sample"
    with pytest.raises(UsageError, match=what):
        several.compare(result, other)
    with pytest.raises(UsageError, match=what):
        several.rank({"a": result, "b": other})


def test_a_ranking_of_many_and_of_few(result: dict) -> None:
    def agents(count: int, sign: float = 1.0) -> dict[str, dict]:
        return {f"agent {i}": shifted(result, real=40.0 * i, dream=sign * 40.0 * i) for i in range(count)}

    few = several.rank(agents(3))
    assert few["n"] == 4 and not few["conclusive"] and "INCONCLUSIVE: 4 policies" in several.sentence(few)
    many = several.rank(agents(9))
    assert many["conclusive"] and many["policies"][-1]["name"] == several.RANDOM
    assert many["metrics"]["spearman"]["value"] > 0.9
    assert not [pair for pair in many["reversals"] if several.RANDOM not in pair]
    wrong = several.rank(agents(9, sign=-1.0))
    assert wrong["metrics"]["spearman"]["value"] < 0 and wrong["reversals"]
    assert set(many["metrics"]) == set(several.MEANING), "every number is explained"
    page = several.html(wrong, "<b>")
    assert "&lt;b&gt;" in page and "<b>" not in page and "agent 8" in page and "reverses" in page


def test_reading_a_report(tmp_path: Path, result: dict) -> None:
    with pytest.raises(UsageError, match="worldmodel gap"):
        several.read(tmp_path)
    for folder in (tmp_path / "report", tmp_path / "run" / "gap"):
        storage.write_file(folder / "gap.json", result)
    assert several.read(tmp_path / "report") == several.read(tmp_path / "run") == result
    assert several.read(tmp_path / "report" / "gap.json") == result
    storage.write_file(tmp_path / "old" / "gap.json", result | {"schema_version": 0})
    with pytest.raises(UsageError, match="schema version 0"):
        several.read(tmp_path / "old")
    (tmp_path / "report" / "gap.json").write_text("{")
    with pytest.raises(CorruptError):
        several.read(tmp_path / "report")


def test_the_command_compares_and_fails_on_demand(
    tmp_path: Path, result: dict, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_file(tmp_path / "a" / "gap.json", result)
    storage.write_file(tmp_path / "b" / "gap.json", shifted(result, real=-3.0))
    assert main(["gap", "--compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "REGRESSION" in out and Path("gap/compare.html").exists()
    assert main(["gap", "a", "b", "--compare", "--json", "--fail-if", "OPTIMISTIC", "REGRESSION"]) == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["regressions"]
    assert main(["gap", "--compare", "a"]) == 2
    assert "two RUNs, not 1" in capsys.readouterr().err
    assert main(["gap", "nothing*"]) == 2
    assert "at least one RUN" in capsys.readouterr().err


def test_the_command_ranks_several_agents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny

    from worldmodel.agent import build
    from worldmodel.config import EnvConfig
    from worldmodel.envs import Spaces, make

    monkeypatch.chdir(tmp_path)
    env = EnvConfig(id="worldmodel/Echo-v0", action_repeat=1)
    for seed in (1, 2):
        torch.manual_seed(seed)
        agent = build(tiny.config(env=env), Spaces.of(make(env)), torch.float32)
        agent.save(tmp_path / f"agent{seed}")
    options = ["--quick", "--episodes", "3", "--starts", "3", "--workers", "1", "--json"]
    assert main(["gap", str(tmp_path / "agent*"), *options]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["n"] == 3 and not found["conclusive"]
    names = [row["name"] for row in found["policies"]]
    assert [Path(name).name for name in names[:2]] == ["agent1", "agent2"]
    assert len(list(tmp_path.glob("gap/*/agent?/gap.json"))) == 2 and Path("gap/ranking.html").exists()
