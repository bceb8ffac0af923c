"""Which curves each kind of stage shows, and what to look for in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from assay.tracking.report import words
from assay.tracking.report.charts import Guide
from assay.tracking.report.run_files import StageFiles


@dataclass(frozen=True)
class Curve:
    """One chart: lines as (label, metric name). A metric with `_low` and `_high` beside it gets a band."""

    title: str
    lines: Sequence[tuple[str, str]]
    note: str = ""
    share: bool = False
    limits: tuple[float, float] | None = None
    guide: Callable[[StageFiles], Guide | None] = lambda stage: None


def _kl_target(stage: StageFiles) -> Guide | None:
    target = stage.get("kl_target")
    return Guide(f"target {words.number(target)}", target, (target / 2, 2 * target)) if target else None


def _level(label: str, y: float) -> Callable[[StageFiles], Guide]:
    return lambda stage: Guide(label, y)


SHARE = (0.0, 1.0)
POSITIVE = (0.0, math.inf)
LEARNING = [
    Curve(
        "Loss per token",
        [("training", "train/loss"), ("held out", "eval/loss")],
        "Nats. Held-out loss that rises while the other falls is overfitting.",
    ),
    Curve("Learning rate", [("learning rate", "train/learning_rate")], limits=POSITIVE),
    Curve("Gradient norm", [("gradient norm", "train/grad_norm")], "Before clipping.", limits=POSITIVE),
]
CURVES: Mapping[str, Sequence[tuple[str, Sequence[Curve]]]] = {
    "pretrain": [("How it learned", LEARNING)],
    "sft": [("How it learned", LEARNING)],
    "reward": [
        (
            "How it learned",
            [
                Curve(
                    "Loss per pair",
                    [("training", "train/loss")],
                    "Knowing nothing costs ln 2.",
                    guide=_level("ln 2", math.log(2)),
                ),
                Curve(
                    "Accuracy",
                    [("training", "train/accuracy"), ("validation", "eval/accuracy")],
                    "Share of pairs ordered as people did; the band is the 95 % interval.",
                    share=True,
                    limits=SHARE,
                    guide=_level("chance", 0.5),
                ),
                Curve("Gradient norm", [("gradient norm", "train/grad_norm")], "Before clipping.", limits=POSITIVE),
            ],
        )
    ],
    "preference": [
        (
            "How it learned",
            [
                Curve(
                    "Loss per example",
                    [("training", "train/loss"), ("held out", "eval/loss")],
                    "Held-out loss that rises while the other falls is overfitting.",
                ),
                Curve(
                    "Accuracy",
                    [("training", "train/accuracy"), ("held out", "eval/accuracy")],
                    "Share of comparisons whose better answer has the higher implicit reward.",
                    share=True,
                    limits=SHARE,
                    guide=_level("chance", 0.5),
                ),
                Curve("Gradient norm", [("gradient norm", "train/grad_norm")], "Before clipping.", limits=POSITIVE),
            ],
        ),
        (
            "What happens to the answers?",
            [
                Curve(
                    "Reward margin",
                    [("training", "train/reward_margin"), ("held out", "eval/reward_margin")],
                    "Implicit reward of the better answer over the worse, in units of β·nats.",
                ),
                Curve(
                    "Log-probability of the better answer",
                    [("training", "train/chosen_logprob"), ("held out", "eval/chosen_logprob")],
                    "Nats per answer. Often it falls, only less than the worse one’s.",
                ),
                Curve(
                    "What is really wanted",
                    [("training prompts", "objective/truth")],
                    "Mean true worth of the policy’s own answers, where it learns from them.",
                ),
            ],
        ),
    ],
    "bestof": [
        (
            "Is it getting better?",
            [
                Curve(
                    "Win rate",
                    [("win rate", "eval/win_rate")],
                    "Against the model it started from; the band is the 95 % interval.",
                    share=True,
                    limits=SHARE,
                    guide=_level("no better", 0.5),
                ),
                Curve("What is really wanted", [("held out", "eval/truth_after")], "Mean true worth of an answer."),
                Curve("Reward", [("held out", "eval/reward_after")], "The reward model’s score."),
                Curve(
                    "KL from the reference",
                    [("KL", "eval/kl"), ("bound", "eval/kl_bound")],
                    "Nats per answer. Best-of-n is never further than log n − (n − 1)/n.",
                ),
            ],
        ),
        (
            "How it learned",
            [
                Curve(
                    "Scores",
                    [("all answers", "objective/score"), ("the best", "objective/best_score")],
                    "On training prompts; what is imitated is ahead of what is sampled.",
                ),
                *LEARNING,
            ],
        ),
    ],
    "distill": [
        (
            "How it learned",
            [
                Curve(
                    "Divergence from the teacher",
                    [("divergence", "train/loss")],
                    "Nats per token, on the texts of each step.",
                    limits=POSITIVE,
                ),
                *LEARNING[1:],
            ],
        )
    ],
    "ppo": [
        (
            "Is it getting better?",
            [
                Curve(
                    "Win rate on validation prompts",
                    [("win rate", "eval/win_rate")],
                    "Against the model it started from; the band is the 95 % interval.",
                    share=True,
                    limits=SHARE,
                    guide=_level("no better", 0.5),
                ),
                Curve(
                    "What is really wanted",
                    [("training prompts", "objective/truth"), ("validation", "eval/truth_after")],
                    "Mean true worth of an answer. It should rise with the reward.",
                ),
                Curve(
                    "Reward",
                    [("training prompts", "objective/reward")],
                    "The reward model’s score, in standard deviations of the start.",
                ),
            ],
        ),
        (
            "How far has it moved?",
            [
                Curve(
                    "KL from the reference",
                    [("KL", "objective/kl")],
                    "Nats per answer. The band, where there is a target, is half to twice of it.",
                    guide=_kl_target,
                ),
                Curve(
                    "KL penalty β",
                    [("β", "objective/kl_coef")],
                    "Its weight. With a KL target it adapts, else it stays.",
                    limits=POSITIVE,
                ),
                Curve(
                    "Entropy per token",
                    [("entropy", "objective/entropy")],
                    "Nats. A fall to a fifth would be a collapse.",
                    limits=POSITIVE,
                ),
            ],
        ),
        (
            "Is the training healthy?",
            [
                Curve(
                    "Policy loss", [("policy loss", "policy/loss")], "Near zero by design; its gradient is what counts."
                ),
                Curve(
                    "Value loss",
                    [("value loss", "val/loss")],
                    "Half the squared error of the value model.",
                    limits=POSITIVE,
                ),
                Curve(
                    "Explained variance",
                    [("explained variance", "val/explained_variance")],
                    "Share of the returns’ variance that the value model foresees; less than −100 % is drawn there.",
                    share=True,
                    limits=(-1.0, 1.0),
                    guide=_level("wanted", 0.5),
                ),
                Curve(
                    "Clipped tokens",
                    [("clipped", "policy/clipfrac_avg")],
                    "Share whose ratio left the trust region.",
                    share=True,
                    limits=SHARE,
                ),
                Curve("KL of one update", [("old to new", "policy/approxkl_avg")], "Nats per token.", limits=POSITIVE),
                Curve("Gradient norm", [("policy", "policy/grad_norm"), ("value", "val/grad_norm")], limits=POSITIVE),
            ],
        ),
        (
            "What do its answers look like?",
            [
                Curve("Length", [("tokens", "lengths/response_mean")], "Mean tokens of an answer.", limits=POSITIVE),
                Curve(
                    "Cut off",
                    [("cut off", "lengths/truncated")],
                    "Share that ran out of tokens.",
                    share=True,
                    limits=SHARE,
                ),
                Curve(
                    "Repetition",
                    [("repetition", "text/repetition")],
                    "Share of four-word runs seen before in the same answer.",
                    share=True,
                    limits=SHARE,
                ),
            ],
        ),
    ],
}
