"""The half of a run that judges: real evaluations, the best agent so far, and the fresh policies that it tries.

now and then    the averaged agent drives the selection tracks; the best one is kept,         RUN/best
                and the next best beside it                                     --finalists   RUN/finalists
second half     after some of these evaluations a fresh policy learns (train/frozen.py),      --relearn-times
                and goes on in place of the run's own if it scores better
at the end      a last fresh policy, and the best so far: all drive other selection           RUN/fresh
                tracks, which have not chosen anything yet, and the best one stays

A signal abandons whatever is under way, as if it had not begun: the session that goes on with the run makes up for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from worldmodel import __version__, storage
from worldmodel.agent import Agent
from worldmodel.config import TRACKS
from worldmodel.errors import CorruptError, UsageError
from worldmodel.eval.real import Evaluation, evaluate
from worldmodel.policies.actor_critic import Lesson
from worldmodel.train.frozen import fresh_agent, renewals_due
from worldmodel.train.hindsight import Hindsight, look_back, quick_gap
from worldmodel.train.watch import open_loop_video

if TYPE_CHECKING:
    from worldmodel.train.loop import Run

GAP_STEPS = 50
"""Agent steps over which every evaluation compares what the dream promises with what reality paid."""

FINAL = 4
"""How many times as many tracks as an evaluation has decide between the finalists and the last fresh policy: the best
of ten evaluations owes its score to luck as well."""


class _StoppedError(Exception):
    """A signal came while a policy was learning."""


class Judging:
    """What `run` knows of its agents' real scores."""

    def __init__(self, run: Run):
        self.run = run
        self.best: dict[str, Any] | None = None
        """Score and cost of the agent in RUN/best, None before the first evaluation."""
        self.last: dict[str, Any] = {"minutes": 0.0, "frames": 0, "updates": 0}
        """Counters at the last evaluation; `relearned` once the finalists and the last fresh policy have met, and then
        `fresh`: whether there was one."""
        self.renewals = 0
        """Fresh policies tried so far in mid-run."""

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self.best, "judged": self.last, "renewals": self.renewals}

    def resume(self, values: dict[str, Any]) -> None:
        """The inverse of `state`, but for the best agent: RUN/best may be newer than the checkpoint."""
        self.last = values.get("judged") or self.run.counters()  # older checkpoints do not know
        self.renewals = values.get("renewals", 0)
        self.best = self._kept()

    def now_and_then(self) -> None:
        """An evaluation if one is due, and after it a fresh policy if that is due."""
        run = self.run
        if run.dreamer.updates and 0 < run.config.eval_minutes < run.elapsed / 60 - self.last["minutes"]:
            score = self.judge()
            if score is not None and self.renewals < renewals_due(run.config, run.done()):
                self._renew(score)

    def concluded(self) -> bool:
        """Whether the last evaluation has been made, if there is to be one, and all have met who are to meet."""
        c = self.run.config
        made = self.last["updates"] == self.run.dreamer.updates
        meet = bool(c.relearn) or c.finalists > 1
        met = "relearned" in self.last and (not c.relearn or self.last.get("fresh", True))
        return not c.eval_minutes or (made and (not meet or met))

    def conclude(self) -> None:
        """The last evaluations; a run that was never judged leaves its last agent in place of its best."""
        run, c = self.run, self.run.config
        if self.last["updates"] != run.dreamer.updates and c.eval_minutes:
            self.judge()
        elif self.best is None:
            agent = run.dreamer.averaged_agent()
            self._save(agent, "best", None, look_back(agent, run.replay))
        if self.concluded() or run.stopped:
            return
        agent = self._fresh(c.relearn_members) if c.relearn else None
        made = self._decide(agent)
        if not run.stopped:
            self.last |= {"relearned": made, "fresh": bool(c.relearn)}

    def judge(self, fresh: Agent | None = None) -> float | None:
        """The averaged agent, or a fresh one, in reality, on tracks that neither train nor report; the best is kept.
        Its mean return, None if a signal stopped it."""
        run, agent = self.run, fresh or self._own()
        result = self._drive(agent, 0, run.config.eval_episodes)
        if result is None:
            return None
        with run.clock("eval"):
            seen = look_back(agent, run.replay)
        score = result.summary()["mean"]
        self._tell("eval", result, {"relearned": True} if fresh else {})
        if self.best is None or score >= self.best["score"]:
            self.best = {"score": score} | run.counters()
            self._save(agent, "best", result, seen)
        if run.config.finalists > 1:
            self._save(agent, f"finalists/update-{run.dreamer.updates:06d}{'-fresh' if fresh else ''}", result, seen)
            self._thin_finalists()
        run.progress.judged(score, self.best["score"])
        self._look_into(agent, seen)
        self.last = run.counters()
        return score

    def _own(self) -> Agent:
        """What the run has come to."""
        agent = self.run.dreamer.averaged_agent()
        agent.card = {"discount": Lesson.at(self.run.done(), self.run.config.policy).discount}
        return agent

    def _drive(self, agent: Agent, first: int, count: int) -> Evaluation | None:
        """`agent` on `count` tracks of the selection range, from its `first` one on."""
        run, begin = self.run, TRACKS["select"] + first
        run.progress.judging(count)
        with run.clock("eval"):
            return evaluate(agent, range(begin, begin + count), stop=lambda: run.stopped)

    def _tell(self, kind: str, result: Evaluation, more: dict[str, Any]) -> None:
        brief = {"laps_finished": result.laps_finished, "returns": [e.return_ for e in result.episodes]}
        self.run.log.write(kind, self.run.replay.total, self.run.counters() | result.summary() | brief | more)

    def _look_into(self, agent: Agent, seen: Hindsight | None) -> None:
        """The quick gap, and a film of the dreams. What fails here is told, no more: hours of training weigh more."""
        run = self.run
        try:
            with run.clock("eval"):
                # In the frozen regime nobody drives but chance: no policy was paid what a dream could be held against.
                if seen and run.config.train_every and (gap := quick_gap(agent, run.replay, seen, GAP_STEPS)):
                    run.log.write("gap", run.replay.total, run.counters() | gap)
                open_loop_video(agent, run.replay, run.collector.start, run.out / "videos", run.log)
        except Exception as error:
            run.progress.warn(f"no film of the dreams this time, training goes on: {error!r}")

    def _renew(self, score: float) -> None:
        """A fresh policy takes the place of the run's own, which has just scored `score`, if it scores better."""
        agent = self._fresh(self.run.config.policy.members)
        fresh = self.judge(agent) if agent else None
        if self.run.stopped:
            return
        self.renewals += 1
        if fresh is not None and fresh > score:
            self.run.dreamer.adopt(agent.policy)

    def _fresh(self, members: int) -> Agent | None:
        """An agent with a fresh policy; None when there is nothing to dream of, or a signal stopped it."""
        run, updates = self.run, self.run.config.relearn

        def note(update: int, metrics: dict[str, Tensor]) -> None:
            if run.stopped:
                raise _StoppedError
            run.progress.relearned(update, updates)
            if update % 100 == 0:
                run.log.write("relearn", update, {name: float(value) for name, value in metrics.items()})

        run.progress.relearning(updates)
        try:
            with run.clock("dream"):
                return fresh_agent(run.dreamer.averaged_agent(), run.replay, members, self.renewals, note)
        except _StoppedError:
            return None

    def _decide(self, agent: Agent | None) -> bool:
        """The best of the finalists and `agent` stays; all drive as they would be loaded. Whether it was done."""
        run, few = self.run, self.run.config.eval_episodes
        if run.stopped:
            return False
        if self.best is None:  # it is damaged
            return agent is not None and self.judge(agent) is not None
        names = self._others()
        if agent:
            self._save(agent, "fresh", None, look_back(agent, run.replay))
            names.append("fresh")
        if not names:
            return False
        results = {}
        for name in ("best", *names):
            results[name] = self._drive(Agent.load(run.out / name), few, FINAL * few)
            if results[name] is None:
                return False
            self._tell("final", results[name], {"agent": name})
        means = {name: result.summary()["mean"] for name, result in results.items()}
        name = max(means, key=lambda name: means[name])
        winner = Agent.load(run.out / name)
        cost = run.counters() if name == "fresh" else winner.card["cost"]
        self.best = {"score": means[name]} | cost
        winner.save(run.out / "best", winner.card | {"cost": cost, "selection": results[name].to_dict()})
        run.progress.judged(means[names[-1]], means[name])
        return True

    def _finalists(self) -> dict[str, dict[str, Any]]:
        """What is usable in RUN/finalists: name -> how it was judged (`Evaluation.to_dict`)."""
        found = {}
        for folder in sorted((self.run.out / "finalists").glob("update-*")):
            try:
                found[f"finalists/{folder.name}"] = storage.read_folder(folder)["card.json"]["selection"]
            except (CorruptError, UsageError) as error:
                self.run.progress.warn(f"{folder.name} is no finalist any more, it is damaged: {error}")
        return found

    def _thin_finalists(self) -> None:
        """Forgets the worst of more than `finalists`."""
        found = self._finalists()
        for name in sorted(found, key=lambda name: found[name]["mean"])[: -self.run.config.finalists]:
            storage.remove(self.run.out / name)

    def _others(self) -> list[str]:
        """The finalists but RUN/best, which is one of them as a rule."""
        best = storage.read_folder(self.run.out / "best")["card.json"]["selection"]["agent_version"]
        return [name for name, judged in self._finalists().items() if judged["agent_version"] != best]

    def _save(self, agent: Agent, name: str, result: Evaluation | None, seen: Hindsight | None) -> None:
        """`agent` to RUN/`name`, with the starts of its dreams."""
        run = self.run
        just_begun = run.collector.start == run.replay.total  # nothing of the running episode is remembered yet
        agent.starts = seen.starts(run.collector.seed - just_begun) if seen else None
        card = {
            "selection": result.to_dict() if result else None, "cost": run.counters(), "seed": run.config.seed,
            "device": run.device, "precision": run.config.precision, "worldmodel": __version__,
            "learning": run.dreamer.learning,
        }  # fmt: skip
        agent.save(run.out / name, card | agent.card)

    def _kept(self) -> dict[str, Any] | None:
        """What is in RUN/best; None when nothing usable is there."""
        try:
            card = storage.read_folder(self.run.out / "best")["card.json"]
        except UsageError:
            return None
        except CorruptError as error:
            self.run.progress.warn(f"the best agent so far is damaged, the next evaluation replaces it: {error}")
            return None
        judged = card["selection"]
        return {"score": judged["mean"]} | card["cost"] if judged else None
