"""What a configuration may hold: every number of it, checked before anything is done."""

from __future__ import annotations

import math
from operator import attrgetter

from worldmodel.config import Config
from worldmodel.errors import UsageError

INTERVALS = {
    "[0, inf)": "world_models.kl_floor world_models.kl_scale world_models.mixture_layers world_models.head_layers "
    "evolution.weight_decay evolution.noise train_every slip_every "
    "minutes frames updates pretrain relearn eval_minutes save_minutes env.image_size world.head_layers "
    "world.vector_layers world.free_nats world.dyn_scale world.rep_scale world.reward_scale world.cont_scale "
    "world.vector_scale policy.layers policy.starts policy.dynamics_starts policy.entropy "
    "policy.final_entropy policy.mean_penalty policy.smoothness policy.max_scale policy.slow_scale policy.replay_value "
    "optim.warmup optim.world_weight_decay replay.online replay.after replay.newest",
    "[1, inf)": "world_models.latent world_models.depth world_models.tokens world_models.memory world_models.mixtures "
    "world_models.units world_models.vector_layers "
    "evolution.starts evolution.horizon evolution.every evolution.generations "
    "eval_episodes prefill env.action_repeat world.deter world.hidden world.blocks world.stoch "
    "world.classes world.units world.depth world.tokens policy.members policy.beliefs policy.units "
    "policy.horizon replay.batch replay.length relearn_times relearn_members finalists greedy_every runs",
    "[3, inf)": "world.bins world_models.bins policy.bins",
    "[4, inf)": "evolution.population",
    "(0, inf)": "world_models.mixture_scale evolution.sigma policy.min_std policy.max_std policy.temperature "
    "optim.world_lr optim.policy_lr optim.agc optim.eps replay.gigabytes",
    "[0, 1]": "replay.recent greedy_from policy.lam policy.smoothness_from policy.slow_rate policy.scale_rate "
    "optim.decay optim.world_decay optim.final policy.dynamics_from",
    "[0, 1)": "world_models.dropout policy.final_discount policy.noise_correlation world.unimix policy.unimix "
    "optim.beta1 optim.beta2 optim.average",
    "(0, 1]": "world.decode_share world_models.decode_share policy.final_noise policy.dynamics_rate",
    "(0, 1)": "policy.discount",
    "[0, 9e18)": "seed",
}
"""Where every number of a configuration must lie; a bracket includes the end, a parenthesis does not."""


def check(config: Config) -> None:
    """Raises UsageError, naming the flag, for values that cannot work, alone or together."""
    for interval, names in INTERVALS.items():
        for name in names.split():
            value = attrgetter(name)(config)
            if not _inside(value, interval):
                words = _words(interval) if math.isfinite(value) else "a finite number"
                raise UsageError(f"{_flag(name)} must be {words}, not {value}")
    for name in ("world.bins", "world_models.bins", "policy.bins"):
        if attrgetter(name)(config) % 2 == 0:
            raise UsageError(f"{_flag(name)} must be odd, so that one bin is 0, not {attrgetter(name)(config)}")
    shrinking = config.optim.world_weight_decay * config.optim.world_lr
    if shrinking >= 1:
        raise UsageError(
            f"--optim.world-weight-decay {config.optim.world_weight_decay} times --optim.world-lr "
            f"{config.optim.world_lr} is the share of itself that a weight loses with every update: give less than "
            f"{1 / config.optim.world_lr:.3g}"
        )
    if not (config.minutes or config.frames or config.updates):
        raise UsageError("no budget: give --minutes, --frames or --updates")
    if not config.train_every and not (config.minutes or config.updates):
        raise UsageError(
            "--train-every 0 collects nothing after the prefill, so --frames cannot end the run: give --minutes or "
            "--updates as well"
        )
    if config.policy.kind not in ("actor-critic", "evolution"):
        raise UsageError(f"--policy.kind must be actor-critic or evolution, not {config.policy.kind}")
    if config.policy.kind == "evolution" and config.policy.replay_value:
        raise UsageError(
            f"--policy.replay-value {config.policy.replay_value:g} teaches a critic, and --policy.kind evolution has "
            "none: set it to 0"
        )
    if config.replay.after and not config.policy.replay_value:
        raise UsageError(
            f"--replay.after {config.replay.after} tells the critic what really came: give --policy.replay-value, the "
            "weight of that lesson"
        )
    if config.replay.newest and not config.replay.recent:
        raise UsageError(
            f"--replay.newest {config.replay.newest} limits what --replay.recent draws from: give that share as well"
        )
    p = config.policy
    if p.gradient != "dynamics" and (p.dynamics_from or p.dynamics_starts or p.dynamics_rate != 1):
        raise UsageError(
            "--policy.dynamics-from, --policy.dynamics-starts and --policy.dynamics-rate are of --policy.gradient "
            "dynamics: give that, or leave them at 0, 0 and 1"
        )
    if config.prefill < config.replay.length + 1:
        raise UsageError(f"--prefill {config.prefill} is shorter than a sequence of {config.replay.length} + 1 steps")
    if config.policy.min_std > config.policy.max_std:
        low, high = config.policy.min_std, config.policy.max_std
        raise UsageError(f"--policy.min-std {low} must not be above --policy.max-std {high}")
    if 0 < config.policy.max_scale < 1:
        raise UsageError(
            f"--policy.max-scale {config.policy.max_scale:g}: advantages are divided by 1 at least: give 1 or "
            "more, or 0 for no limit"
        )
    if config.relearn and config.policy.kind != "actor-critic":
        raise UsageError("--relearn teaches a fresh actor-critic: leave it at 0 with another --policy.kind")
    if config.relearn and not config.eval_minutes:
        raise UsageError(
            "--relearn needs evaluations that choose between the policies: give --eval-minutes, or --relearn 0"
        )
    if config.finalists > 1 and not config.eval_minutes:
        raise UsageError(
            f"--finalists {config.finalists} are chosen by evaluations: give --eval-minutes, or --finalists 1"
        )
    if config.slip_every and config.greedy_from == 1:
        raise UsageError(
            f"--slip-every {config.slip_every} begins at --greedy-from, which is 1, the end of the run: give less than "
            "1, or --slip-every 0"
        )
    if config.policy.final_entropy and not config.policy.entropy:
        raise UsageError("--policy.final-entropy is approached from --policy.entropy, which must then not be 0")


def _inside(value: float, interval: str) -> bool:
    low, high = _ends(interval)
    return (value > low or (value == low and interval[0] == "[")) and (
        value < high or (value == high and interval[-1] == "]")
    )


def _words(interval: str) -> str:
    low, high = _ends(interval)
    if high < math.inf:
        return f"in {interval}"
    return f"{'at least' if interval[0] == '[' else 'more than'} {low:g}"


def _ends(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
