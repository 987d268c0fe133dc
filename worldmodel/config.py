"""Every default of the project, with its provenance; the named presets built from them are in `presets.py`.

"Prototype" is the throw-away program that came before this library: one file, about 890 after 50 minutes on two cores.
A `Config` is frozen and serialises to JSON (`to_dict` / `from_dict`); unknown keys are errors with a suggestion.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from worldmodel.errors import UsageError


@dataclass(frozen=True)
class EnvConfig:
    """The real task, as the agent meets it."""

    id: str = "worldmodel/CarRacing-v3"
    """Any registered gymnasium id; `worldmodel/CarRacing-v3` is gymnasium's CarRacing with a faster renderer."""
    action_repeat: int = 4
    """Environment frames for which one action is held; rewards are summed, only the last frame is drawn."""
    image_size: int = 64
    """Images are resized (area average) to this many pixels per side; 0 keeps the environment's own size."""
    read_score: bool = False
    """CarRacing only: the score is read from its digits in the picture, which resizing blurs, and seen as a vector."""
    see_tiles: bool = False
    """CarRacing only: tiles that were not visited yet, which its picture shows a shade lighter, are brightened."""
    see_misses: bool = False
    """CarRacing only: the tiles left behind untouched, which its picture shows behind the car, are counted along the
    episode, and their number is seen as a vector."""
    see_time: bool = False
    """The used share of the time limit is seen as a vector, and reaching it is an end like any other."""


@dataclass(frozen=True)
class WorldConfig:
    """Which world, and DreamerV3's RSSM (arXiv 2301.04104); sizes of our CPU model, measured in docs/experiments.md."""

    kind: Literal["rssm", "vae-mdn-rnn"] = "rssm"
    """`rssm`: DreamerV3's, set up here; `vae-mdn-rnn`: that of World Models (2018), set up in `world_models`, for which
    the rest of this section does not count."""
    deter: int = 512
    """Width of the deterministic, recurrent part of the state."""
    hidden: int = 256
    """Width of the layers around the recurrence."""
    blocks: int = 8
    """Blocks of the block-diagonal GRU (DreamerV3: 8)."""
    stoch: int = 16
    """Categorical variables in the stochastic part of the state."""
    classes: int = 16
    """Classes of each categorical variable."""
    units: int = 256
    """Width of the reward and continue heads and of the vector encoder and decoder."""
    head_layers: int = 1
    """Hidden layers of the reward and continue heads (DreamerV3: 1)."""
    vector_layers: int = 3
    """Hidden layers of the encoder and decoder of vector observations (DreamerV3: 3)."""
    vision: Literal["patch", "paper"] = "patch"
    """`patch`: stride-4 patches, then strided 3x3 convolutions (cheap on CPU); `paper`: DreamerV3's 5x5 + max-pool."""
    depth: int = 32
    """Channels of the first convolution; `patch` multiplies it by 1, 2, 4 and `paper` by 2, 3, 4, 4."""
    tokens: int = 256
    """Width of the `patch` encoder's output (prototype)."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm without bias (2.7 times faster than RMSNorm on CPU, forward and backward) or DreamerV3's RMSNorm."""
    bins: int = 255
    """Two-hot bins of the reward head (DreamerV3: 255)."""
    unimix: float = 0.01
    """Share of the uniform distribution mixed into every categorical (DreamerV3)."""
    free_nats: float = 1.0
    """KL below this is free; clipped after summing over the categoricals (DreamerV3)."""
    dyn_scale: float = 1.0
    """Weight of KL(stop-gradient posterior || prior), which trains the prior (DreamerV3)."""
    rep_scale: float = 0.1
    """Weight of KL(posterior || stop-gradient prior), which regularises the posterior (DreamerV3)."""
    reward_scale: float = 1.0
    """Weight of the cross entropy of rewards (DreamerV3: 1): beside the error of a whole picture a world hardly cares
    for the little of it that pays (HarmonyDream: Ma et al. 2024, arXiv 2310.00344)."""
    cont_scale: float = 1.0
    """Weight of the cross entropy of ends (DreamerV3: 1): where an end comes once in hundreds of steps, a world of few
    updates learns it late, and values go on beyond it."""
    vector_scale: float = 1.0
    """Weight of the squared error of vector observations beside that of pictures (DreamerV3: 1)."""
    decode_share: float = 0.5
    """Share of the time steps whose observation is reconstructed each update (unbiased; ours, halves the cost)."""


@dataclass(frozen=True)
class WorldModelsConfig:
    """V and M of World Models (Ha and Schmidhuber 2018, arXiv 1803.10122 and its code); `world.kind` vae-mdn-rnn."""

    latent: int = 32
    """Dimensions of z (World Models, CarRacing: 32)."""
    vision: Literal["patch", "2018"] = "patch"
    """`patch`: the small encoder and decoder of our RSSM (cheap on CPU); `2018`: the original's, for 64 pixels only."""
    depth: int = 32
    """Channels of the first convolution of `patch`, multiplied by 1, 2, 4."""
    tokens: int = 256
    """Width of the `patch` encoder's output."""
    kl_floor: float = 0.5
    """Free nats per dimension of z; the KL is clipped after summing over them: 16 nats at 32 (World Models' code)."""
    kl_scale: float = 1.0
    """Weight of V's KL, the beta of a beta-VAE (World Models: 1). Below 1 z says more, and is less noisy."""
    memory: int = 256
    """Width of the LSTM (World Models, CarRacing: 256)."""
    mixtures: int = 5
    """Gaussians in a mixture (World Models: 5)."""
    joint: bool = False
    """One mixture over the whole of z, instead of one for each of its dimensions (World Models' code)."""
    mixture_layers: int = 0
    """Hidden layers between the LSTM and the mixture, which then sees the last z and the action as well (ours; World
    Models: 0, straight from the LSTM)."""
    mixture_scale: float = 1.0
    """Weight of the mixture's loss, which is in nats per dimension of z (World Models: 1)."""
    dropout: float = 0.0
    """Share of the LSTM's candidate values dropped while M learns and while it dreams, never while it filters real
    observations (Wellmer and Kwok 2021, "Dropout's Dream Land"; World Models: 0)."""
    units: int = 256
    """Width of the reward and continue heads, and of the encoder and decoder of vector observations (ours)."""
    head_layers: int = 1
    """Hidden layers of the reward and continue heads (as in our RSSM)."""
    vector_layers: int = 1
    """Hidden layers of the encoder and decoder of vector observations (as in our RSSM on CarRacing)."""
    norm: Literal["layer", "rms"] = "layer"
    """Of all layers but the original's, which have none."""
    bins: int = 255
    """Two-hot bins of the reward head (DreamerV3: 255)."""
    decode_share: float = 0.5
    """Share of the time steps whose observation is reconstructed each update, as in the RSSM."""
    see: Literal["z and h", "z"] = "z and h"
    """What policies see: all, or the present picture alone (World Models' "V only": 632 beside 906 in the real car)."""
    random_memory: bool = False
    """The LSTM keeps its random weights, and only what is read from it is learnt: mixture, reward, continue (after
    Tallec et al. 2019, whose memory, wholly untrained, served the real car as well as a trained one)."""


@dataclass(frozen=True)
class PolicyConfig:
    """Which policy, and DreamerV3's actor-critic: the actor learns from dreams only, the critic too unless
    `replay_value` is on."""

    kind: Literal["actor-critic", "evolution"] = "actor-critic"
    """`actor-critic`: DreamerV3's, set up here; `evolution`: a linear controller found by CMA-ES (World Models 2018),
    set up in `evolution`, for which nothing but `temperature` and `beliefs` of this section counts."""
    members: int = 1
    """Actor-critics that learn apart, each from as many dreams, and act by their mean (ours; DreamerV3: 1)."""
    beliefs: int = 1
    """Samples of the present latent state, given what is seen, whose likeliest actions are averaged (discrete: put to
    the vote) where reality is driven without sampling actions (ours; DreamerV3: 1). Nothing is learned with it."""
    units: int = 256
    """Width of actor and critic."""
    layers: int = 2
    """Hidden layers of actor and critic (DreamerV3: 3)."""
    horizon: int = 15
    """Imagined steps from every start (DreamerV3)."""
    temperature: float = 1.0
    """Of the latents in the dreams that teach: above 1 unlikely futures come more often, and a dream is harder to
    exploit (Ha and Schmidhuber 2018); DreamerV3: 1."""
    starts: int = 256
    """Posterior states, sampled from the batch, from which imagination starts; 0 takes all (DreamerV3)."""
    discount: float = 0.99
    """Discount per agent step; 1/(1-discount) = 100 agent steps (prototype; DreamerV3: 0.997)."""
    final_discount: float = 0.0
    """Discount when the budget is used up, towards which the horizon 1/(1-discount) grows or shrinks geometrically all
    along the run; 0 = constant."""
    lam: float = 0.95
    """Lambda of the lambda-return (DreamerV3)."""
    entropy: float = 3e-4
    """Entropy bonus (DreamerV3)."""
    final_entropy: float = 0.0
    """Entropy bonus when the budget is used up, towards which it moves geometrically all along the run: explore first,
    be precise in the end; 0 = constant."""
    final_noise: float = 1.0
    """What the standard deviation of continuous actions is multiplied by in the dreams that teach when the budget is
    used up, towards which it falls geometrically from 1 all along the run: an actor that is judged by its mean has to
    learn by it (ours; DreamerV3: 1). Where reality is explored by samples, they keep the whole of it."""
    noise_correlation: float = 0.0
    """Of the noise of continuous actions in the dreams that teach, from one step to the next (0 to below 1): what the
    score function then tries is a longer push, which a car follows, in place of a trembling hand, which it does not
    (autoregressive policies: Korenkevych et al. 2019, arXiv 1903.11524; DreamerV3: 0). Reality is explored without."""
    gradient: Literal["reinforce", "dynamics"] = "reinforce"
    """How the actor learns: score function (DreamerV3) or backpropagation through the imagined dynamics."""
    dynamics_from: float = 0.0
    """Share of the run after which `gradient` dynamics begins; until then the score function teaches, which finds the
    first rewards more surely (ours)."""
    dynamics_starts: int = 0
    """Imagined trajectories per update while the actor learns through the dynamics, where one costs more; 0 = as many
    as before, `starts` (ours)."""
    dynamics_rate: float = 1.0
    """What `optim.policy_lr` is multiplied by while the actor learns through the dynamics: its gradients agree from
    update to update, so the same rate moves it several times as far (ours)."""
    bins: int = 255
    """Two-hot bins of the critic (DreamerV3)."""
    unimix: float = 0.01
    """Uniform share of a discrete policy (DreamerV3)."""
    min_std: float = 0.1
    """Smallest standard deviation of a continuous policy (DreamerV3)."""
    max_std: float = 1.0
    """Largest standard deviation of a continuous policy (DreamerV3)."""
    mean_penalty: float = 0.0
    """Weight of the squared mean of a continuous policy before its tanh: an actor that was driven to the ends, where
    tanh is flat, hardly learns any more (the squared preactivations of Andrychowicz et al. 2017, arXiv 1707.01495;
    CarRacing: docs/experiments.md; DreamerV3: 0)."""
    smoothness: float = 0.0
    """Weight of the squared change of a continuous policy's mean from one dreamed step to the next: what steers from
    end to end and back drives slowly, and hardly finds its way out of it (the temporal term of CAPS, Mysore et al.
    2021, arXiv 2012.06644, which is not squared; CarRacing: docs/experiments.md; DreamerV3: 0)."""
    smoothness_from: float = 0.0
    """Share of the run after which `smoothness` counts: a beginner has to swing the wheel to find out what it does
    (ours)."""
    slow_rate: float = 0.02
    """Rate at which the slow critic follows the critic (DreamerV3)."""
    slow_scale: float = 1.0
    """Weight of the critic's cross entropy to the slow critic's prediction (DreamerV3)."""
    replay_value: float = 0.0
    """Weight of the critic's loss on replayed sequences, with the rewards that reality paid (DreamerV3: 0.3); 0 trains
    actor and critic in dreams alone."""
    scale_rate: float = 0.01
    """Rate of the moving 5 % and 95 % return percentiles that scale the advantage (DreamerV3)."""
    max_scale: float = 0.0
    """Largest divisor of the advantage, in reward units: where returns spread over a whole episode and what one action
    gains does not, entropy bonus and mean penalty would weigh ever more (ours); 0 = none (DreamerV3)."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm without bias or DreamerV3's RMSNorm, as in the world."""


@dataclass(frozen=True)
class EvolutionConfig:
    """World Models' controller and CMA-ES, with returns that are dreamed; `policy.kind` evolution."""

    population: int = 64
    """Controllers in a generation (World Models: 64)."""
    starts: int = 16
    """Dreams of every controller, whose mean return counts; the same replayed states for all controllers of a
    generation, drawn anew for the next (World Models: 16 rollouts, real ones)."""
    horizon: int = 250
    """Agent steps of a dream: 1000 frames at action repeat 4 (World Models: whole episodes of 1000 frames)."""
    sigma: float = 0.1
    """Standard deviation of the parameters in the first generation, around zero (World Models' code)."""
    weight_decay: float = 0.01
    """Return that a controller loses per unit of the mean square of its parameters (World Models' code)."""
    every: int = 25
    """Updates of the world between two rounds of evolution (ours: half of the time for each, or less)."""
    generations: int = 1
    """Generations of a round (ours: the search goes on where it stopped, so many short rounds cost nothing)."""
    noise: float = 0.1
    """While collecting: standard deviation of the noise on continuous actions, share of random ones among discrete
    actions (ours, not tuned; World Models collected once, with random networks)."""


@dataclass(frozen=True)
class OptimConfig:
    """LaProp with adaptive gradient clipping (DreamerV3's newest code)."""

    world_lr: float = 4e-4
    """Learning rate of the world model (prototype: Adam 4e-4; DreamerV3: 4e-5 for far larger models)."""
    policy_lr: float = 1e-4
    """Learning rate of actor and critic (prototype)."""
    world_weight_decay: float = 0.0
    """Weight decay of the world model, decoupled (AdamW): its matrices lose this times their learning rate of
    themselves with every update. A world that sees the same frames a hundred times learns rare ones, spins, by heart
    (CarRacing: docs/experiments.md; DreamerV3: 0)."""
    warmup: int = 200
    """Updates of linear warm-up (DreamerV3: 1000, for far longer runs)."""
    agc: float = 0.3
    """Adaptive gradient clipping: largest ratio of gradient norm to weight norm, per tensor."""
    beta1: float = 0.9
    """Momentum, applied to the scaled gradient."""
    beta2: float = 0.999
    """Decay of the squared gradient."""
    eps: float = 1e-20
    """Added to the root of the squared gradient."""
    decay: float = 0.0
    """Share of the run's budget, at its end, over which both learning rates fall linearly to `optim.final` of
    themselves; 0 = off. A budget that is raised later raises the rates again."""
    world_decay: float = 0.0
    """The same share for the world's rate alone, where it is to fall earlier or later than the policy's; 0 = as
    `optim.decay`."""
    final: float = 0.1
    """Share of the learning rates that is left when the budget is used up; counts only where they fall."""
    average: float = 0.997
    """Decay of the moving average of all weights, the agent that is evaluated and shipped (ours); 0 = off."""


@dataclass(frozen=True)
class ReplayConfig:
    """What is remembered, and how it is replayed."""

    gigabytes: float = 4.0
    """Cap of the replay memory, in GB of 10^9 bytes; the oldest steps are forgotten."""
    batch: int = 32
    """Sequences in a batch (DreamerV3: 16)."""
    length: int = 16
    """Steps in a sequence (DreamerV3: 64); short, because remembered states give every sequence its context."""
    online: int = 1
    """Sequences of a batch reserved for the newest steps, each taught once as soon as it is complete."""
    recent: float = 0.0
    """Share of the other sequences drawn from the newest quarter of what is remembered, which shows what the policy
    does now; the rest from all of it (CarRacing: docs/experiments.md)."""
    newest: int = 0
    """Steps that this newest quarter has at most, for it grows as a run does, and what the policy does now becomes ever
    less of it (ours; CarRacing: docs/experiments.md); 0 = no limit."""
    after: int = 0
    """Steps after a sequence of the newest quarter, up to the end of its episode, whose rewards count in the returns of
    `policy.replay_value` before the critic is asked: with as many as an episode has, it is taught what really came
    (ours); 0: it is asked where the sequence ends (DreamerV3)."""
    mirror: bool = False
    """CarRacing only: half of all but the reserved sequences are replayed mirrored, left for right, so that the same
    frames teach twice as much (ours)."""


@dataclass(frozen=True)
class Config:
    """One run. Budgets: whichever of `minutes`, `frames`, `updates` is reached first ends it; 0 = no limit."""

    env: EnvConfig = field(default_factory=EnvConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    world_models: WorldModelsConfig = field(default_factory=WorldModelsConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    minutes: float = 60.0
    """Wall-clock budget, minutes of training in all sessions of the run together."""
    frames: int = 0
    """Budget of real environment frames."""
    updates: int = 0
    """Budget of updates."""
    seed: int = 1
    """Seed of everything random."""
    runs: int = 1
    """Runs side by side, each with these settings and budgets, a seed and a share of the cores of its own; the best
    agent of all stays (train/side_by_side.py; ours, CarRacing: docs/experiments.md)."""
    prefill: int = 2500
    """Agent steps of correlated random actions before learning starts (prototype)."""
    pretrain: int = 100
    """Updates on the prefilled replay before the policy first acts (prototype), or first evolves."""
    relearn: int = 0
    """Updates in which, once the budget is used up, a fresh policy learns in the dreams of the run's last world alone;
    it is kept if it scores better in reality (ours; CarRacing: 1000, docs/experiments.md). Needs evaluations."""
    relearn_times: int = 1
    """How often that is tried: at the end, and before that at moments spread over the second half, where the fresh
    policy takes the place of the run's own if it scores better (ours)."""
    relearn_members: int = 1
    """`policy.members` of the fresh policy at the end (CarRacing: 3)."""
    finalists: int = 1
    """How many of its best evaluations a run keeps the agents of. At its end they meet, with the last fresh policy, on
    four times as many other tracks, and the best one stays (ours: the best of many short evaluations is lucky)."""
    train_every: float = 4.0
    """Agent steps per update (prototype); 0 collects nothing after the prefill, and learns until the budget is used
    up: the frozen regime of World Models."""
    greedy_from: float = 1.0
    """Share of the budget after which the policy collects by its likeliest actions, as when it is judged, in place of
    sampled ones, so that the world learns what those lead to (ours; CarRacing: docs/experiments.md); 1 = never."""
    greedy_every: int = 1
    """From then on every episode is collected that way (1), or every second, third ... one: what is remembered then
    still shows the world off the policy's one path (ours)."""
    slip_every: int = 0
    """From `greedy_from` on the policy's hand slips now and then in every so many-th episode, so that the world learns
    what errors lead to (train/slips.py; ours, CarRacing: docs/experiments.md); 0 = never."""
    eval_minutes: float = 5.0
    """Minutes between evaluations in the real environment (0 = never)."""
    eval_episodes: int = 10
    """Real episodes of one evaluation, on tracks of the selection range."""
    save_minutes: float = 3.0
    """Minutes between checkpoints, the most that a crash can cost."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Matrix products in bfloat16 on CUDA and on CPUs with AMX tiles or AVX512_BF16; resolved as the run begins."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1` ...; `auto` takes CUDA when there is one."""


TRACKS = {"train": 0, "select": 1_000_000, "report": 2_000_000}
"""First seeds of the disjoint ranges of real episodes: what trains, what selects a checkpoint, what is reported."""


RETIRED: dict[str, Any] = {"world_only_from": 1.0, "drivers": 1, "stumbles": 0.0, "env.read_gauges": False}
"""Settings that are gone, with the value that turned them off: a run that had them off is still understood."""


def to_dict(config: Config) -> dict[str, Any]:
    """`config` as plain JSON types."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`. Raises UsageError naming an unknown key and the nearest known one."""
    return _build(Config, values, "")


def from_file(values: dict[str, Any], path: Path) -> Config:
    """`from_dict` of what `path` holds, whose checksum is right, so that an unknown key is not damage."""
    try:
        return from_dict(values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}: another version of worldmodel wrote it") from error


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    if not isinstance(values, dict):
        raise UsageError(f"configuration {where.rstrip('.') or 'file'} must be an object of settings, not {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if f"{where}{key}" in RETIRED and value == RETIRED[f"{where}{key}"]:
            continue
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {where}{near[0]!s}?" if near else ""
            raise UsageError(f"unknown configuration key {where}{key}{hint}")
        factory = fields[key].default_factory
        nested = dataclasses.is_dataclass(factory)
        arguments[key] = _build(factory, value, f"{where}{key}.") if nested else value
    return cls(**arguments)


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which two configurations differ, with both values."""
    left, right = _flat(to_dict(a)), _flat(to_dict(b))
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return out
