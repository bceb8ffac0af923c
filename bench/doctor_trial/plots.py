"""Draws every mode of the doctor: its injected fault beside the healthy run, and where the doctor decides.

    make doctor-plots                      →  docs/doctor/images/NAME.svg, one for each mode; some minutes
    make doctor-plots MODES="negative-kl"     some of them

The faults are those of `make doctor-trial`; a table below says which of their numbers show a mode, and drawing.py how.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from bench import common
from bench.doctor_trial import counterparts, faults_data, measures
from bench.doctor_trial.drawing import (
    Drawing,
    Panel,
    bars,
    cells,
    lines,
    metric,
    pick,
    spread,
    svg,
    twice,
)

from assay.doctor import (
    data,
    direct,
    groups,
    kl,
    labels,
    machine,
    probe_policy,
    recipe,
    responses,
    reward,
    sft,
    tokens,
    updates,
)
from assay.doctor.tokens import Endings

IMAGES = common.ROOT / "docs" / "doctor" / "images"


@dataclass(frozen=True)
class Picture:
    """What is drawn for one mode."""

    mode: str
    title: str
    """Says what to look at."""
    draw: Drawing
    healthy: counterparts.Source
    number: int = 0
    """Which of the mode's faults, where there are several."""
    faulty: counterparts.Source | None = None
    """In place of a fault of the trial, where a picture needs more than its evidence."""

    def svg(self) -> str:
        found = counterparts.evidence(self.faulty or counterparts.faults_of(self.mode)[self.number].evidence)
        return svg(self.title, self.draw, counterparts.evidence(self.healthy), found)


LN2 = {"ln 2: a guess": math.log(2)}
ROWS = {"amber": data.RARE, "red": data.MANY}


PICTURES: tuple[Picture, ...] = (
    # data
    Picture(
        "swapped-labels",
        "Swapped labels: the model prefers what people rejected",
        spread(
            measures.own_deviations, "score of chosen − rejected, in their deviation, held-out pairs", {"a coin": 0}
        ),
        faults_data.healthy_reward,
    ),
    Picture(
        "split-leak",
        "A fifth of the rows twice: held-out prompts are known",
        bars(measures.copied_prompts, "share, with its interval", {"amber and red": data.COPIES}),
        faults_data.healthy_rows,
    ),
    Picture(
        "shortcut",
        "A phrase at every chosen end: who sees only words, or length, knows the label",
        bars(measures.tricks, "held-out accuracy", {"length": data.LENGTH_WINS, "words": data.WORDS_WIN}),
        faults_data.healthy_rows,
    ),
    Picture(
        "response-cut-away",
        "Most answers need more tokens than a row holds",
        spread(measures.room, "tokens of prompt and answer, as a share of max_length", {"a full row": 1.0}),
        faults_data.healthy_rows,
    ),
    Picture(
        "eos-not-learned",
        "The end token has no probability where answers end",
        spread(
            lambda given: pick(given, Endings).probabilities,
            "P(end) at the end of an answer",
            {"red: a mean below": tokens.ENDS},
        ),
        faults_data.healthy_sft,
    ),
    Picture(
        "mis-split-dialogue",
        "An eighth of the pairs parts before the last answer",
        bars(measures.odd_rows(data.MIS_SPLIT), "share, with its interval", ROWS),
        faults_data.healthy_rows,
    ),
    Picture(
        "identical-pairs",
        "One pair of twelve has one answer twice",
        bars(measures.odd_rows(data.IDENTICAL_PAIRS), "share, with its interval", ROWS),
        faults_data.healthy_rows,
    ),
    Picture(
        "text-that-is-no-text",
        "One chosen answer of ten is null",
        bars(measures.odd_rows(data.NO_TEXT), "share, with its interval", ROWS),
        faults_data.healthy_rows,
    ),
    Picture(
        "label-noise",
        "A quarter of the labels flipped: even the surest pairs are contradicted",
        lines(
            Panel(
                "labelled the other way",
                measures.contradicted,
                {"amber, of the surest": labels.AGAINST},
                along="fifth of the pairs, surest first",
            )
        ),
        faults_data.healthy_reward,
    ),
    Picture(
        "too-good-to-be-true",
        "Tested on what it learned by heart: above what agreement allows",
        bars(measures.above_agreement, "accuracy − ceiling, with its interval", {"as agreement allows": 0.0}, "+.1%"),
        faults_data.healthy_reward,
    ),
    Picture(
        "boundary-tokens",
        "Encoded as one text, the prompt ends in another token than when it is asked",
        cells(measures.boundary),
        counterparts.apart_encoded,
    ),
    Picture("double-bos", "Two begin tokens, where one belongs", cells(measures.begins), counterparts.one_begin),
    Picture(
        "number-as-text",
        "The same learning rate, spelled in four ways: text breaks the optimizer",
        cells(measures.readings, ("PyYAML", "Assay")),
        counterparts.spelled_well,
        faulty=counterparts.spelled_badly,
    ),
    Picture(
        "prompts-cut-away",
        "Rows hardly longer than answers: no prompt has room",
        spread(measures.prompt_lengths, "tokens of a prompt, as a share of its room", {"all the room": 1.0}),
        counterparts.small_recipe,
    ),
    # SFT
    Picture(
        "loss-blow-up",
        "A thousand times the learning rate: the loss is soon above where it began",
        lines(metric("train/loss", measures.blown_up, "log", "training loss, nats a token")),
        counterparts.sft_run,
    ),
    Picture(
        "overfitting",
        "The training loss falls, the validation loss rises",
        lines(
            metric("train/loss"),
            Panel("eval/loss above its lowest, %", measures.above_lowest, {"amber, twice in a row": 100 * sft.RISE}),
        ),
        counterparts.sft_run,
    ),
    Picture(
        "accumulation-bias",
        "The gradient of a batch is not that of its rows, one by one",
        twice(measures.split_gradients, "gradient, all rows at once", "rows one by one"),
        counterparts.step_probe,
    ),
    Picture(
        "tokenizer-mismatch",
        "Under other ids, words are less likely than by a blind guess",
        spread(
            measures.surprises, "−log-probability of a token, nats", {"a blind guess": math.log(measures.VOCABULARY)}
        ),
        counterparts.policy_probe,
        number=1,
    ),
    # reward model
    Picture(
        "reward-at-chance",
        "The loss never falls below ln 2: nothing is learned",
        lines(metric("train/loss", LN2), metric("eval/accuracy", {"a coin": 0.5})),
        counterparts.reward_run,
    ),
    Picture(
        "accuracy-against-margin",
        "Near 65, bf16 knows half points only: small margins become ties",
        twice(measures.margins, "margin of a pair, in fp32", "margin, of scores near 65 in bf16"),
        counterparts.undecided,
        faulty=counterparts.rounded,
    ),
    Picture(
        "fluctuating-accuracy",
        "Fifty other pairs at every validation: the accuracy jumps",
        lines(metric("eval/accuracy")),
        counterparts.validated_often,
    ),
    Picture(
        "padding-changes-score",
        "A score depends on the pads beside it",
        twice(measures.with_pads, "score alone", "score in a padded batch"),
        counterparts.reward_probe,
    ),
    Picture(
        "head-lost",
        "Saved without its head and read again: other scores",
        twice(measures.before_and_after_saving, "score before saving", "score after loading"),
        counterparts.reward_probe,
    ),
    Picture(
        "constant-scores",
        "The margins do not vary: both answers score alike",
        lines(metric("eval/reward_gap_std", {"red": reward.CONSTANT})),
        counterparts.reward_run,
    ),
    Picture(
        "score-drift",
        "65 on every score: the mean is many deviations from 0",
        bars(measures.drift, "", {"amber": reward.DRIFT}, ".2g"),
        counterparts.reward_run,
    ),
    Picture(
        "not-finite",
        "Activations beyond what fp16 can hold",
        lines(Panel("largest output", measures.activations, {"fp16 ends": 65504}, "log", "module")),
        counterparts.policy_probe,
    ),
    Picture(
        "length-bias",
        "Paid by the character: longer answers win more often than people say",
        bars(
            measures.length_taste,
            "share of pairs, with its interval",
            {"amber": reward.TASTE, "red": reward.STRONG_TASTE},
        ),
        counterparts.reward_run,
    ),
    # policy
    Picture(
        "nothing-moves",
        "The largest value in a run: the first 0 in a row is the cause",
        cells(measures.passes, ("spread of scores", "gradient", "step", "KL")),
        counterparts.ppo,
        faulty=counterparts.all_that_stand_still,
    ),
    Picture(
        "negative-kl",
        "A true KL is never below 0: the sampler has old weights",
        lines(metric("objective/kl", {"0": 0.0}, label="KL, nats an answer")),
        counterparts.group,
    ),
    Picture(
        "kl-before-training",
        "At step 1 nothing is learned yet, and the KL must be 0",
        lines(metric("objective/kl", label="KL, nats an answer")),
        counterparts.group,
        number=1,
    ),
    Picture(
        "ratio-not-one",
        "Before an iteration's first step the ratio must be 1",
        lines(metric("policy/ratio_first_error", {"red": updates.CLIP}, "log", "max |ρ − 1|")),
        counterparts.group,
    ),
    Picture(
        "kl-blow-up",
        "A target of 0.1 nats, and a penalty that cannot hold it",
        lines(metric("objective/kl", {"three times the target": kl.KL_OVER_TARGET * 0.1}, label="KL, nats an answer")),
        counterparts.towards_a_target,
    ),
    Picture(
        "ratio-spikes",
        "A hundred times the learning rate: the policy leaves its batch at once",
        lines(
            metric("policy/clipfrac_avg", {"limit": updates.CLIPPED}, label="share clipped"),
            metric("policy/approxkl_avg", {"limit": updates.DRIFT}, label="KL(old‖new), nats a token"),
        ),
        counterparts.ppo,
    ),
    Picture(
        "bad-critic",
        "The critic explains less than nothing of the returns",
        lines(metric("val/explained_variance", {"as good as none": 0.0}, "symlog", "explained variance")),
        counterparts.ppo,
    ),
    Picture(
        "reward-hacking",
        "The reward rises, and what is really worth something falls",
        lines(metric("objective/reward"), metric("objective/truth")),
        counterparts.with_truth,
    ),
    Picture(
        "repetition",
        "Paid for saying it again, the policy says it again",
        lines(metric("text/repetition", {"red": responses.LOOPS}, label="repeated 4-grams")),
        counterparts.group,
    ),
    Picture(
        "never-stops",
        "Never shown an end: every answer is cut off",
        lines(metric("lengths/truncated", {"red": responses.HALF}, label="answers cut off")),
        counterparts.group,
    ),
    Picture(
        "empty-answers",
        "Paid for brevity: answers vanish",
        lines(
            metric("lengths/empty", {"red": responses.EMPTY}, label="empty answers"),
            metric("lengths/response_mean", label="tokens an answer"),
        ),
        counterparts.group,
    ),
    Picture(
        "entropy-out-of-bounds",
        "A bonus for entropy that outweighs the reward",
        lines(metric("objective/entropy", measures.twice_the_start, label="entropy, nats a token")),
        counterparts.group,
    ),
    Picture(
        "reward-falls",
        "Advantages with the wrong sign: the reward falls",
        lines(metric("objective/reward", label="reward")),
        counterparts.group,
    ),
    Picture(
        "groups-without-signal",
        "Groups whose answers all score alike teach nothing",
        lines(metric("objective/groups_without_signal", {"amber": groups.MOST}, label="groups without spread")),
        counterparts.group,
    ),
    Picture(
        "broken-groups",
        "More than one prompt in a group: answers are compared with strangers",
        lines(metric("objective/prompts_per_group", {"the only right number": 1.0}, label="prompts in a group")),
        counterparts.group,
    ),
    Picture(
        "mask-ignored",
        "By how much log-probabilities change beside pads",
        lines(
            Panel(
                "|change|, nats",
                measures.beside_pads,
                {"red: a mean above": probe_policy.TOKEN_TOLERANCE},
                "log",
                "token",
                joined=False,
            )
        ),
        counterparts.policy_probe,
    ),
    Picture(
        "right-padded-prompts",
        "Generation goes on from the last column",
        cells(measures.padded_prompts),
        counterparts.left_padded,
    ),
    Picture(
        "frozen-adapter-blocks",
        "Re-entrant checkpointing: no block of the adapter gets a gradient",
        lines(Panel("norm of the gradient of B", measures.adapter_gradients, {}, "symlog", "adapter block")),
        counterparts.policy_probe,
    ),
    Picture(
        "no-anchor",
        "Without a penalty the policy goes as far as the reward model leads it",
        lines(
            metric("objective/kl", label="KL, nats an answer"),
            metric("objective/entropy", label="entropy, nats a token"),
        ),
        counterparts.held,
        faulty=counterparts.unheld,
    ),
    Picture(
        "worse-than-before",
        "Its pairs prefer another answer than the judge: it loses against its start",
        bars(measures.win_rate, "share, with its interval", {"red: all of the interval below": responses.HALF}),
        counterparts.preferring_rightly,
    ),
    Picture(
        "wrong-refusals",
        "A refusal wins whatever was asked: harmless requests are refused as well",
        bars(measures.refusals, "share of the requests that are refused, with its interval", {}),
        counterparts.refusing_rightly,
    ),
    # DPO
    Picture(
        "stuck-at-ln2",
        "Policy and reference are one model: the loss cannot leave ln 2",
        lines(metric("train/loss", LN2), metric("train/reward_margin", {"0": 0.0})),
        counterparts.direct_run,
    ),
    Picture(
        "chosen-falls",
        "A hundred times the learning rate: chosen answers fall while the margin grows",
        lines(
            metric("train/chosen_logprob", label="log-probability, chosen"),
            metric("train/reward_margin", label="margin"),
        ),
        counterparts.direct_run,
    ),
    Picture(
        "saturated-early",
        "Right in every pair before a tenth of them is seen",
        lines(metric("train/accuracy", {"99 %": direct.EASY})),
        counterparts.who_disagree,
    ),
    Picture(
        "length-growth",
        "Longer was always better, and answers grow",
        bars(measures.growth, "", {"amber": direct.LONGER, "red": direct.MUCH_LONGER}, ".2f"),
        counterparts.direct_run,
    ),
    Picture(
        "wrong-reference",
        "The reference gives other probabilities than the SFT model",
        lines(
            Panel(
                "|difference|, nats",
                measures.reference_and_sft,
                {"red: a mean above": probe_policy.TOKEN_TOLERANCE},
                "log",
                "token",
                joined=False,
            )
        ),
        counterparts.policy_probe,
    ),
    # machine
    Picture(
        "sampler-differs",
        "What the sampler drew has another probability for the trainer",
        lines(
            Panel(
                "KL of a token, k3",
                measures.sampler_and_trainer,
                {"red: a mean above": updates.SAMPLER_KL},
                "log",
                "token",
                joined=False,
            )
        ),
        counterparts.policy_probe,
    ),
    Picture(
        "slow-number-format",
        "One matrix product, in the format that this processor imitates",
        bars(measures.slower, "times as long as fp32", {"red": machine.SLOWER}, ".3g", "log"),
        counterparts.in_float32,
    ),
    Picture(
        "resume-skips",
        "After the restart at step 8 the examples are not those that were planned",
        lines(Panel("examples as planned", measures.as_planned)),
        counterparts.kept_its_place,
    ),
    Picture(
        "out-of-memory",
        "A stage that needs more memory than the machine has",
        bars(measures.memory, "MB", {}, ",.0f", "log"),
        counterparts.small_recipe,
    ),
    Picture(
        "disk-full",
        "A disk that has no room for what the run writes",
        bars(measures.disk, "MB", {}, ",.1f", "log"),
        counterparts.small_recipe,
    ),
    Picture(
        "learning-rate-out-of-range",
        "One stage of three has a hundred times its learning rate",
        bars(
            measures.rates,
            "learning rate, over the one that such a model bears well",
            {"amber": recipe.FAST, "red": recipe.FAR_TOO_FAST},
            ".2g",
            "log",
        ),
        counterparts.small_recipe,
    ),
    Picture(
        "steps-of-noise",
        "As many pairs, one a step or ten: a step of one pair learns from noise",
        lines(Panel("loss of a step, nats", measures.along_pairs("train/loss"), LN2, along="pairs learnt from")),
        counterparts.by_ten,
        faulty=counterparts.one_by_one,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [picture.mode for picture in PICTURES]
    parser.add_argument("modes", nargs="*", metavar="MODE", help="all of them if left out")
    parser.add_argument("--images", type=Path, default=IMAGES)
    asked = parser.parse_args()
    if unknown := set(asked.modes) - set(known):
        parser.error(f"no mode is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    for picture in PICTURES:
        if not asked.modes or picture.mode in asked.modes:
            common.write(asked.images / f"{picture.mode}.svg", picture.svg())


if __name__ == "__main__":
    main()
