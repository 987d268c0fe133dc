"""The command line: cheap help, one line for every mistake, results alone on standard output, stable exit codes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

import worldmodel
from worldmodel import storage
from worldmodel.cli import main
from worldmodel.config import TRACKS
from worldmodel.presets import PRESETS
from worldmodel.train.schedule import Pace

ROOT = Path(worldmodel.__file__).parents[1]
TINY = [
    "--env.id", "worldmodel/Corridor-v0", "--env.action-repeat", "1", "--env.image-size", "0", "--world.deter", "32",
    "--world.hidden", "16", "--world.depth", "4", "--world.units", "16", "--policy.units", "16", "--policy.starts", "8",
    "--replay.batch", "4", "--replay.length", "8", "--prefill", "40", "--pretrain", "2", "--precision", "float32",
    "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 updates that was judged on two tracks."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "debug", "--out", str(out), "--updates", "4", "--eval-minutes", "60", *TINY]) == 0
    return out


def outside(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-m", "worldmodel.cli", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def last(text: str) -> dict[str, Any]:
    """The last line as a JSON object."""
    value = json.loads(text.splitlines()[-1])
    assert isinstance(value, dict)
    return value


# -- help -------------------------------------------------------------------------------------------------------------


def test_help_costs_less_than_half_a_second() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = outside("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.returncode == 0 and shown.stderr == ""
    for word in ("train [PRESET]", "eval  RUN", "dream RUN", "gap   RUN", "3 gate failed", "75 and 130", *PRESETS):
        assert word in shown.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize(
    "argv", [["--help"], [], ["--version"], ["tarin"], ["train", "--help"], ["train", "dbug"], ["eval", "--help"]],
    ids=" ".join,
)  # fmt: skip
def test_small_talk_imports_neither_torch_nor_environments(argv: list[str]) -> None:
    code = (
        "import sys\nfrom worldmodel.cli import main\n"
        f"try: main({argv!r})\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'gymnasium', 'pygame', 'Box2D'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert shown.stderr.splitlines()[-1] == "[]"


def test_no_command_shows_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2 and "usage: worldmodel COMMAND" in capsys.readouterr().out
    for word in ("-h", "--help", "help"):
        assert main([word]) == 0 and "usage: worldmodel COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == worldmodel.__version__


@pytest.mark.parametrize("command", ["train", "eval", "dream", "gap"])
def test_every_command_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and "--json" in text and "--out" in text
    if command == "train":
        for flag in ("--minutes", "--save-minutes", "--env.id", "--world.deter", "--replay.gigabytes", "--device"):
            assert flag in text
        assert "Wall-clock budget" in text, "the docstrings of the configuration are the help"


# -- mistakes ---------------------------------------------------------------------------------------------------------


def mistake(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and what was said, in one line of single blanks."""
    try:
        code = main(argv)
    except SystemExit as left:
        code = int(left.code)
    shown = capsys.readouterr()
    assert shown.out == "", "standard output is for results"
    return code, " ".join(shown.err.split())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("tarin", "no command 'tarin'; did you mean train? (commands: train, eval, dream, gap)"),
        ("--verbose", "no command '--verbose' (commands: train, eval, dream, gap)"),
        ("train dbug", "no preset 'dbug'; did you mean debug?"),
        ("train 12M", "no preset '12M'; did you mean 12m"),
        ("train --update 5", "Perhaps you meant: --updates INT"),
        ("train --world.detr 64", "--world.deter INT"),
        ("train --env CartPole-v1", "--env.id STR"),
        ("train debug more --out x", "Unrecognized options: more"),
        ("train --updates many", "Error parsing --updates: invalid literal for int() with base 10: 'many'"),
        ("train --precision float16", "Expected one of ('auto', 'float32', 'bfloat16')"),
        ("train --out", "Missing value for argument '--out'"),
        ("eval", "A run folder (its best agent) or an agent folder. (required)"),
        ("eval carracing", "no agent in 'carracing': give a run folder with a best agent, or an agent folder"),
        ("dream nowhere", "no agent in 'nowhere': give a run folder with a best agent, or an agent folder"),
        ("dream nowhere --format avi", "Expected one of ('mp4', 'gif')"),
        ("eval nowhere --episodes 0", "--episodes must be at least 1, not 0"),
        ("eval nowhere --out result.txt", "--out result.txt must be a .json file"),
        ("train debug --out {new} --updates -1", "--updates must be at least 0, not -1"),
        ("train debug --out {new} --updates 0", "no budget: give --minutes, --frames or --updates"),
        ("train debug --out {new} --prefill 3", "--prefill 3 is shorter than a sequence of 16 + 1 steps"),
        ("train debug --out {new} --replay.gigabytes 0.00001", "give at least"),
        ("train debug --out {new} --env.id CarRacing-v9", "did you mean"),
        ("train debug --out {new} --device gpu", "--device gpu: torch cannot use it here; use cpu, cuda"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_mistakes_are_exit_2_with_a_remedy(
    argv: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = mistake(argv.format(new=tmp_path / "new").split(), capsys)
    assert code == 2 and said in text and "Traceback" not in text
    assert not list(tmp_path.glob("*/lock.json"))


def test_a_run_folder_in_place_of_a_preset(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`worldmodel train runs/carracing`, to go on with it: as `eval` and `dream` are used."""
    code, text = mistake(["train", str(run)], capsys)
    assert code == 2 and text.endswith(
        f"{run} is a folder, not a preset: to go on with the run in it, give --out {run}"
    )


def test_a_folder_without_an_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("eval", "dream"):
        code, text = mistake([command, str(tmp_path)], capsys)
        assert code == 2 and "give a run folder with a best agent, or an agent folder" in text


def test_wrong_environment_for_the_agent(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = mistake(["eval", str(run), "--env", "worldmodel/Echo-v0", "--episodes", "1", "--workers", "1"], capsys)
    assert code == 2 and "worldmodel/Echo-v0 gives" in text and "this agent was trained on" in text


def test_dream_beyond_the_end_of_the_episode(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = mistake(["dream", str(run), "--start", "5000", "--out", str(tmp_path)], capsys)
    assert code == 2 and "start earlier or shorten the horizon" in text and not list(tmp_path.iterdir())


def test_errors_are_one_line_and_their_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from worldmodel import errors
    from worldmodel.train import side_by_side

    for error in (errors.UsageError, errors.CorruptError, errors.NumericalError, errors.StorageError):

        def fail(*_: Any, error: type[Exception] = error) -> None:
            raise error("what it is; what helps")

        monkeypatch.setattr(side_by_side, "Run", fail)
        code, text = mistake(["train", "debug", "--out", str(tmp_path)], capsys)
        assert (code, text) == (error.exit_code, "worldmodel train: what it is; what helps")
    assert [e.exit_code for e in (errors.UsageError, errors.CorruptError, errors.NumericalError)] == [2, 4, 5]
    assert errors.StorageError.exit_code == 74 and errors.WorldModelError.exit_code == 1
    monkeypatch.setattr(side_by_side, "Run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert mistake(["train", "debug", "--out", str(tmp_path)], capsys)[0] == 130


# -- results ----------------------------------------------------------------------------------------------------------


def test_train_json_goes_to_standard_output_and_progress_to_standard_error(tmp_path: Path) -> None:
    """In a process of its own, whose streams are what a script gets."""
    shown = outside("train", "debug", "--out", str(tmp_path), "--updates", "3", "--json", *TINY)
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) == 1
    result = last(shown.stdout)
    assert result["updates"] == 3 and result["finished"] and result["exit_code"] == 0 and result["best"] is None
    assert result["run"] == str(tmp_path) and result["frames"] > 0 and result["steps"] > result["frames"] / 2
    assert abs(sum(result["time"].values()) - 1) < 1e-6
    assert "plan: " in shown.stderr and "ended by --updates" in shown.stderr and "Agent(" in shown.stderr


def test_train_again_resumes_says_it_is_finished_and_goes_on_when_raised(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without repeating a single flag."""
    assert main(["train", "--out", str(run), "--json"]) == 0
    shown = capfd.readouterr()
    assert last(shown.out)["updates"] == 4 and "budget of this run is used up" in shown.err
    assert f"resumed from {run}" in shown.err and "after 4 updates" in shown.err
    assert main(["train", f"--out={run}", "--updates", "6", "--eval-minutes", "0"]) == 0
    shown = capfd.readouterr()
    assert "used up" not in shown.err
    lines = shown.out.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"{run}: 6 updates, ") and "best real score" in lines[0]
    config = storage.read_file(run / "config.json")
    assert config["env"]["id"] == "worldmodel/Corridor-v0" and config["world"]["deter"] == 32


def test_another_configuration_on_resume(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = mistake(["train", "--out", str(run), "--world.deter", "64", "--seed", "3"], capsys)
    assert code == 2
    assert "world.deter: 32 -> 64 seed: 1 -> 3 use another --out for the new one, or the old values to continue" in text


def test_a_second_trainer_names_the_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with storage.Lock(run):
        code, text = mistake(["train", "--out", str(run)], capsys)
    assert code == 2 and f"in use by process {os.getpid()}" in text and "another --out" in text


def test_eval_json(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "result.json"
    assert main(["eval", str(run), "--episodes", "3", "--workers", "1", "--json", "--out", str(out)]) == 0
    shown = capfd.readouterr()
    assert len(shown.out.splitlines()) == 1
    result = last(shown.out)
    for key in ("n", "mean", "std", "median", "p10", "iqm", "iqm_ci", "laps_finished", "seeds", "gymnasium"):
        assert key in result, key
    assert result["n"] == 3 and result["seeds"] == [TRACKS["report"] + i for i in range(3)]
    assert result["gymnasium"] == gymnasium.__version__ and result["mode"] == "mode" and result["run"] == str(run)
    assert result["mean"] == pytest.approx(sum(result["returns"]) / 3)
    assert storage.read_file(out) == result
    assert "3/3 episodes, mean return" in shown.err


def test_eval_for_people_and_its_options(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run / "best"), "--episodes", "2", "--workers", "1", "--seed", "7", "--sample"]) == 0
    shown = capfd.readouterr()
    assert len(shown.out.splitlines()) == 1 and "(n=2)" in shown.out
    assert main(["eval", str(run), "--episodes", "1", "--workers", "1", "--seed", "7", "--sample", "--json"]) == 0
    result = last(capfd.readouterr().out)
    assert result["seeds"] == [7] and result["mode"] == "sample"


def test_the_worst_episodes_are_filmed(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["eval", str(run), "--episodes", "2", "--workers", "1", "--films", "1", "--json"]
    assert main([*argv, "--out", str(tmp_path / "result.json")]) == 0
    result = last((shown := capfd.readouterr()).out)
    worst = result["seeds"][result["returns"].index(min(result["returns"]))]
    (film,) = (tmp_path / "films").iterdir()
    assert film.name == f"{worst}.mp4" and film.stat().st_size > 10_000
    assert f"{film}: return {min(result['returns']):.1f}" in shown.err
    code, text = mistake(["eval", str(run), "--episodes", "2", "--films", "3"], capfd)
    assert code == 2 and "--films must be between 0 and --episodes 2" in text


def test_bug_a_result_was_lost_when_its_file_could_not_be_written(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Minutes of driving: they are on standard output before the file is tried."""
    (tmp_path / "file").write_text("in the way")
    argv = ["eval", str(run), "--episodes", "1", "--workers", "1", "--json", "--out", str(tmp_path / "file" / "r.json")]
    assert main(argv) == 74
    shown = capfd.readouterr()
    assert last(shown.out)["n"] == 1 and "cannot write" in shown.err.splitlines()[-1]


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_dream_json(run: Path, tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    window = ["--start", "0", "--context", "2", "--horizon", "4"]
    assert main(["dream", str(run), "--out", str(tmp_path), "--format", suffix, "--json", *window]) == 0
    shown = capfd.readouterr()
    assert len(shown.out.splitlines()) == 1
    result = last(shown.out)
    assert result["seed"] == TRACKS["report"] and (result["start"], result["context"], result["horizon"]) == (0, 2, 4)
    assert {Path(file).suffix for file in result["files"]} == {f".{suffix}", ".png"}
    assert all(Path(file).stat().st_size > 0 for file in result["files"])


def test_interrupted_training_is_told_by_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import signal

    from worldmodel.train import loop

    monkeypatch.setattr(loop, "measure", lambda *_: os.kill(os.getpid(), signal.SIGINT) or Pace(0.01, 0.001))
    assert main(["train", "debug", "--out", str(tmp_path), "--json", *TINY]) == 130
    result = last(capsys.readouterr().out)
    assert result["exit_code"] == 130 and not result["finished"]


def test_debug_preset_drives_a_car(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`worldmodel train debug`, shortened: 200 updates of it take 20 seconds. Again: it says it is finished."""
    argv = ["train", "debug", "--out", str(tmp_path), "--updates", "3", "--prefill", "40", "--pretrain", "1", "--json"]
    for again in (False, True):
        assert main(argv) == 0
        shown = capfd.readouterr()
        result = last(shown.out)
        assert result["updates"] == 3 and result["frames"] >= 4 * 40 and ("used up" in shown.err) == again
    assert worldmodel.load(tmp_path).config.env.id == "worldmodel/CarRacing-v3"
