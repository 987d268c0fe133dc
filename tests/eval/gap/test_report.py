"""gap.html: a pure function of gap.json that needs nothing and trusts nothing; and the command that writes it."""

from __future__ import annotations

import copy
import itertools
import json
import re
from html.parser import HTMLParser

import gap_fakes
import pytest
import tiny
import torch

from worldmodel.agent import build
from worldmodel.cli import main
from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.eval.gap import report, svg
from worldmodel.eval.gap.measure import Scale, measure

VOID = {"meta", "img", "line", "rect", "circle", "polyline", "br"}


class Page(HTMLParser):
    """Checks that tags nest, and collects them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def result():
    agent = gap_fakes.agent(gap_fakes.Noisy(2.0), gap_fakes.Critic())
    scale = Scale("small", episodes=9, starts=12, horizon=10, open_loop=15, windows=12, every=(1, 4))
    found = measure(agent, scale, seeds=range(9), command=["worldmodel", "gap", "a run"])
    interval = {"mean": 0.7, "low": 0.0, "high": 2.0, "n": 9, "clusters": 9}
    row = {"returns": [1.0], "dream": interval, "real": interval, "gap": interval}
    sweep = [{"temperature": t, **row} for t in (0.5, 1.0)]
    return json.loads(json.dumps(found | {"temperature": sweep}))


def test_the_page_needs_nothing_but_itself(result):
    text = report.html(result)
    page = Page(text)
    words = re.sub(r"base64,[\w+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]", words), "no address of anything else"
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"}
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "script" not in policy
    for tag, attrs in page.tags:
        if tag == "img":
            assert attrs["src"].startswith("data:image/png;base64,") and len(attrs["alt"]) > 40
        if tag == "svg":
            assert attrs["role"] == "img" and attrs["aria-label"]
    assert text.count("<svg") >= 8 and text.count("<img") == 3 and len(text) < 5_000_000
    assert "prefers-color-scheme:dark" in text and not re.search(r"\bnan\b", words, re.I)


def test_every_plot_has_its_numbers_behind_it(result):
    page = Page(report.html(result))
    names = [tag for tag, _ in page.tags]
    assert names.count("details") == names.count("figure") - 3 == names.count("svg") - 1  # strips; the verdict's own
    assert names.count("table") >= names.count("details")


def test_the_verdict_comes_first_and_the_numbers_are_there(result):
    text = report.html(result)
    order = ["<h1>", result["verdict"]["name"], "Promised and paid", "Where the gap comes from", "Phantom reward",
             "How far the dream carries", "share still going on", "from the best to the worst",
             "Does it know when it is wrong?", "speak the encoder's language?", "Blindfold", "Temperature",
             "The critic", "What this does not show", "Provenance"]  # fmt: skip
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert result["provenance"]["agent_version"] in text and "worldmodel gap a run" in text
    assert svg.number(result["transfer"]["points"][0]["dream"]) in text


def test_the_page_is_a_pure_function_and_changes_nothing(result):
    before = copy.deepcopy(result)
    assert report.html(result) == report.html(copy.deepcopy(result))
    assert report.html(result) == report.html(json.loads(json.dumps(result, sort_keys=True))), "whatever their order"
    assert result == before


def test_strings_from_outside_cannot_speak(result):
    evil = '<script>alert("1")</script>\'"><img src=x onerror=alert(1)>'
    bad = copy.deepcopy(result)
    bad["verdict"] |= {"name": evil, "reason": evil}
    bad["provenance"] |= {"command": [evil], "cpu": evil, "agent_version": evil, "mode": evil, "intervals": evil}
    bad["provenance"]["task"]["env_id"] = evil
    bad["provenance"]["scale"]["name"] = evil
    bad["provenance"]["versions"][evil] = evil
    bad["filmstrips"][0] |= {"alt": evil, "png": evil, "label": evil}
    for name in ("disagreement", "dialect"):
        row = bad[name]["horizons"]["5"] | {"auroc": 0.5, "useful": False}
        bad[name]["horizons"] = {evil: row, "5": row}
    bad["horizons"]["horizons"] = {evil: next(iter(bad["horizons"]["horizons"].values())) | {evil: 1.0}}
    text = report.html(bad)
    assert "<script" not in text and "<img src=x" not in text
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script"}
    assert not [attrs for _, attrs in page.tags if "onerror" in attrs]


def test_what_was_not_measured_is_left_out(result):
    bare = result | {"horizons": None, "values": None, "temperature": None, "blindfold": None, "filmstrips": [],
                     "disagreement": None, "dialect": None}  # fmt: skip
    text = report.html(bare)
    Page(text)
    for words in (
        "How far the dream",
        "Blindfold",
        "Temperature",
        "The critic",
        "<img",
        "when it is wrong",
        "language",
    ):
        assert words not in text
    older = {name: value for name, value in bare.items() if name not in ("disagreement", "dialect")}
    assert report.html(older) == text, "a gap.json from before they were measured"
    assert report.sentence(bare).startswith(result["verdict"]["name"])


def test_disagreement_that_says_nothing_is_not_to_be_shown_as_confidence(result):
    def told(**found):
        rows = {k[1:]: {"windows": 40, "bad": 4, "disagreement": 0.1, "auroc": area, "auroc_interval": None,
                        "auroc_path": area, "spearman": 0.0, "useful": useful}
                for k, (area, useful) in found.items()}  # fmt: skip
        text = report.html(result | {"disagreement": result["disagreement"] | {"horizons": rows}})
        Page(text)
        return text

    text = told(k1=(0.7, True), k5=(0.59, False), k15=(0.31, False), k50=(0.65, None), k100=(None, None))
    assert "At 5, 15 imagined steps (AUROC below 0.6) it must not be shown as confidence" in text
    assert "At 1 it tells bad dreams from good" in text and "At 50 too few bad dreams" in text
    text = told(k1=(0.61, True))
    assert "must not" not in text and "At 1 it tells" in text and "too few bad" not in text
    assert "when it is wrong" not in told(k1=(None, None)), "nothing can be told"


def test_the_new_parts_are_measured_and_shown(result):
    shown, measured = Page(report.html(result)), result["disagreement"]
    assert measured["heads"] == 5 and measured["horizons"]["5"]["auroc"] is not None
    assert {"1", "5"} <= set(result["dialect"]["horizons"])
    assert result["horizons"]["horizons"]["5"]["survival_real"] is not None
    words = " ".join(shown.words)
    assert svg.number(measured["horizons"]["5"]["auroc"]) in words
    assert svg.number(result["dialect"]["horizons"]["5"]["dream_distance"]) in words


def test_writing_gives_both_files(result, tmp_path):
    files = report.write(result, tmp_path / "new" / "gap")
    assert [f.rsplit("/", 1)[1] for f in files] == ["gap.json", "gap.html"]
    assert json.loads((tmp_path / "new/gap/gap.json").read_text()) == result
    assert (tmp_path / "new/gap/gap.html").read_text() == report.html(result)
    assert sorted(p.name for p in (tmp_path / "new/gap").iterdir()) == ["gap.html", "gap.json"]


# -- plots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.03, 0.07), (0, 0), (5, 5), (-1e6, 1e6), (0.001, 0.0011), (17.2, 60)]
)
def test_ticks_are_round_and_hold_the_range(low, high):
    found = svg.ticks(low, high)
    assert 2 <= len(found) <= 10 and found == sorted(found)
    assert found[0] <= low + 1e-9 * abs(low) and found[-1] >= high - 1e-9 * abs(high)
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in itertools.pairwise(found)}
    assert steps == {1.0}


def test_numbers_are_short():
    values = (0, -0.0, 1.5, 893.0096, 0.0123456, 1e-7, 123456.7, -2, None, float("nan"), float("inf"))
    shown = ("0", "0", "1.5", "893", "0.01235", "0.0000001", "123457", "-2", "-", "-", "-")
    assert tuple(svg.number(value) for value in values) == shown


def test_points_lie_where_the_axes_say():
    axes = svg.Axes([0, 10], [0, 4])
    assert axes.x(0) == svg.LEFT and axes.x(10) == svg.WIDTH - svg.RIGHT
    assert axes.y(0) == svg.HEIGHT - svg.BOTTOM and axes.y(4) == svg.TOP
    plot = svg.lines({"a": [(0, 0), (10, 4)], "none": []}, "x", "y", "alt")
    assert f'points="{axes.x(0):.1f},{axes.y(0):.1f} {axes.x(10):.1f},{axes.y(4):.1f}"' in plot and "none" not in plot
    assert svg.lines({}, "x", "y", "alt") == svg.dots([], "x", "y", "alt") == svg.whiskers([], "x", "alt") == ""


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny.config(env=EnvConfig(id="gap_fakes:Lane-v0", action_repeat=1, image_size=16))
    env = make(config.env)
    torch.manual_seed(0)
    agent = build(config, Spaces.of(env), torch.float32)
    env.close()
    tiny.shake(agent.world)
    tiny.shake(agent.policy)
    folder = tmp_path_factory.mktemp("run")
    agent.save(folder / "best")
    return folder


def test_the_command_writes_the_report_and_fails_on_demand(run, capsys):
    argv = ["gap", str(run), "--quick", "--episodes", "5", "--starts", "5", "--workers", "1", "--json"]
    assert main(argv) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out.splitlines()[-1])
    assert found["verdict"]["name"] == "INCONCLUSIVE" and found["files"] == [
        f"{run}/gap/gap.json",
        f"{run}/gap/gap.html",
    ]
    stored = json.loads((run / "gap" / "gap.json").read_text())
    assert stored["verdict"] == found["verdict"] and stored["provenance"]["command"] == ["worldmodel", *argv]
    assert {t["temperature"] for t in stored["temperature"]} == {0.1, 0.5, 0.8, 1.0, 1.15, 1.3, 1.5}
    usual = next(row for row in stored["temperature"] if row["temperature"] == 1.0)
    assert usual["dream"]["mean"] == pytest.approx(stored["transfer"]["returns"]["dream"]["mean"])
    assert len(list((run / "gap" / "episodes").glob("*/*.npz"))) == 5
    assert main([*argv, "--fail-if", "EXPLOITED", "INCONCLUSIVE"]) == 3
    capsys.readouterr()
    assert main([*argv[:-1], "--fail-if", "EXPLOITED"]) == 0
    assert capsys.readouterr().out.startswith("INCONCLUSIVE: 5 episodes are too few")


def test_mistakes_are_named(run, capsys):
    assert main(["gap", str(run), "--episodes", "0"]) == 2
    assert "--episodes and --starts must be at least 1" in capsys.readouterr().err
    assert main(["gap", str(run / "nowhere")]) == 2
    with pytest.raises(SystemExit) as left:
        main(["gap", str(run), "--fail-if", "BAD"])
    assert left.value.code == 2
