"""Five prior failures, made for real and put before `assay doctor`: docs/doctor/riddles.md.

    make riddles             →  docs/doctor/riddles.md; some minutes
    make riddles RIDDLES="loss-zero negative-kl"    →  those alone, on the screen

Each riddle is a small project that fails as people have reported it. The fault is put under `assay run`, or into the
home-made script beside it; then the doctor is asked by its command, the cure is applied, and the project runs again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bench import common
from bench.doctor_trial.faults_models import OFFSET, scored_as, uncalibrated
from tests.unit.stages.toy import COLOURS, toy_model

from assay.cli.main import app
from assay.doctor.probe_policy import logprobs
from assay.models.policy import Policy, load_policy
from assay.rng import python_rng
from assay.rollout.engine import Engine, Generation
from assay.tracking.metrics import read_metrics
from assay.types import Preference
from assay.worlds import prepare

PAGE = common.ROOT / "docs" / "doctor" / "riddles.md"
Patch = AbstractContextManager[Any]

# The project of three riddles: answers of three colours, and people who like blue at the beginning, not at the end.

RECIPE = """\
model: {path: BASE, template: chat}
data:
  preferences: {path: DATA/pairs.jsonl}
  demonstrations: {path: DATA/shown.jsonl}
  validation_split: 0.15
  test_split: 0.3
runs_dir: RUNS
stages:
  - sft: {epochs: 8, batch_size: 16, max_length: 32, optim: {learning_rate: 1.0e-2}}
  - reward: {epochs: 2, batch_size: 16, max_length: 32, optim: {learning_rate: 3.0e-3}, validate_every: 20}
  - ppo:
      episodes: 1440
      batch_size: 48
      inner_epochs: 2
      minibatches: 2
      max_length: 32
      optim: {learning_rate: 1.0e-3, schedule: constant}
      value_warmup: 1
      kl_coef: 0.1
      sampling: {max_new_tokens: 6}
"""
WORDS = 3
"""Of an answer."""
QUESTIONS = [f"{ask} {one} {other}?" for ask in ("what is", "name") for one in COLOURS for other in COLOURS]


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    summary: Mapping[str, Any]

    def metrics(self, stage: str) -> dict[str, Any]:
        return self.summary["stages"][stage]["metrics"]

    @property
    def folder(self) -> Path:
        return Path(self.summary["dir"])

    def artifact(self, stage: str) -> Path:
        return self.folder.parent / "artifacts" / self.summary["stages"][stage]["artifact"]

    def course(self, stage: str, name: str) -> list[float]:
        """A metric over the steps at which it was logged."""
        lines = read_metrics(self.artifact(stage) / "metrics.jsonl")
        return [line.values[name] for line in lines if name in line.values]

    def doctor(self, *under: Patch) -> str:
        return assay("doctor", str(self.folder), under=under)


@dataclass(frozen=True)
class Project:
    """A folder with a model, data and a recipe."""

    folder: Path

    @classmethod
    def of_colours(cls, folder: Path, noise: float = 0.5) -> Project:
        """People like blue at the beginning, a point, and not at the end; and have so much `noise` beside that."""
        toy_model(folder / "base")
        rng = random.Random(0)

        def answer() -> str:
            return " ".join(rng.choices(COLOURS, k=WORDS))

        def worth(text: str) -> int:
            return text.startswith("blue") - text.endswith("blue")

        def pair(question: str) -> dict[str, str]:
            one, other = answer(), answer()
            while other == one:
                other = answer()
            (_, rejected), (_, chosen) = sorted((worth(text) + rng.gauss(0, noise), text) for text in (one, other))
            return {"prompt": question, "chosen": chosen, "rejected": rejected}

        write_lines(folder / "pairs.jsonl", [pair(question) for question in QUESTIONS for _ in range(60)])
        shown = [{"prompt": question, "completion": answer()} for question in QUESTIONS for _ in range(20)]
        write_lines(folder / "shown.jsonl", shown)
        text = RECIPE.replace("BASE", str(folder / "base")).replace("DATA", str(folder))
        (folder / "recipe.yaml").write_text(text.replace("RUNS", str(folder / "runs")))
        return cls(folder)

    def run(self, *words: str, under: Sequence[Patch] = (), runs: str = "runs") -> Outcome:
        """`assay run`, with faults put under it; what `runs` holds of stages before is kept."""
        said = assay(
            "run", str(self.folder / "recipe.yaml"), *words, f"runs_dir={self.folder / runs}", "--json", under=under
        )
        return Outcome(json.loads(said))

    def copy(self, runs: str) -> str:
        """Another folder of runs with everything made so far, so that a fault meets finished stages before it."""
        shutil.copytree(self.folder / "runs", self.folder / runs)
        return runs


def write_lines(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def assay(*words: str, under: Sequence[Patch] = ()) -> str:
    """What the command prints, run in this process so that a fault can be put under it; 1 is the doctor's red."""
    out, progress = StringIO(), StringIO()
    with ExitStack() as stack:
        for one in under:
            stack.enter_context(one)
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(progress))
        try:
            app(list(words))
        except SystemExit as ended:
            if ended.code not in (None, 0) and not (words[0] == "doctor" and ended.code == 1):
                raise RuntimeError(f"assay {' '.join(words)} ended with {ended.code}: {progress.getvalue()}") from None
    return out.getvalue()


def old_weights(folder: Path) -> Patch:
    """The sampler keeps the weights in the folder; what it draws is scored by the policy as it is by then."""
    draw, first = Engine.generate, load_policy(folder, trainable=False)

    def generate(self: Engine, prompts: Any, params: Any, **more: Any) -> list[Generation]:
        drawn = draw(Engine(first, self.renderer, max_batch=self.max_batch), prompts, params, **more)
        scored = logprobs(self.policy, [one.row for one in drawn]).split([len(one.logprobs) for one in drawn])
        return [replace(one, logprobs=found.tolist()) for one, found in zip(drawn, scored, strict=True)]

    return patch.object(Engine, "generate", generate)


# What the page tells of a riddle -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """One riddle: all but `puzzle`, `why` and `cure` is what programs printed or measured."""

    title: str
    puzzle: str
    """What people report, and how it was made here."""
    seen: str
    """What the failing project printed."""
    said: str
    """What the doctor said to that."""
    why: str
    cure: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Measured before and after the cure."""
    healed: str
    """What the doctor says then."""


def findings(said: str) -> str:
    """The doctor's words without the list of what it could not check."""
    return said.partition("\nnot checked:")[0].strip()


def verdict(said: str) -> str:
    """The doctor's first line."""
    return said.partition("\n")[0]


def last_quarter(values: Sequence[float]) -> float:
    late = values[-max(1, len(values) // 4) :]
    return sum(late) / len(late)


# 1 --------------------------------------------------------------------------------------------------------------------

TRAIN = """\
import sys, torch, yaml

config = yaml.safe_load(open(sys.argv[1]))
weight = torch.nn.Parameter(torch.zeros(()))
optimizer = torch.optim.AdamW([weight], lr=config["lr"])
for step in range(config["steps"]):
    loss = (weight - 1).square()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"trained with a learning rate of {config['lr']}, loss {loss.item():.4f}")
"""


def number_as_text(folder: Path) -> Told:
    (folder / "train.py").write_text(TRAIN)
    settings = folder / "train.yaml"

    def attempt(rate: str) -> tuple[str, str]:
        """The last line that the script prints, and what the doctor says of its settings."""
        settings.write_text(f"lr: {rate}\nsteps: 100\n")
        words = [sys.executable, "train.py", settings.name]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        return (done.stdout or done.stderr).strip().splitlines()[-1], assay("doctor", str(settings))

    (failed, said), (trained, healed) = attempt("1e-5"), attempt("1.0e-5")
    ours = json.loads(assay("config", "show", "sandbox", "sft.optim.learning_rate=1e-5", "--json"))
    read = ours["stages"][0]["sft"]["optim"]["learning_rate"]
    return Told(
        "“'<=' not supported between instances of 'float' and 'str'”",
        "A script of twelve lines reads its learning rate from `train.yaml` with PyYAML and gives it to AdamW.",
        f"$ cat train.yaml\nlr: 1e-5\nsteps: 100\n$ python train.py train.yaml\n{failed}",
        f"$ assay doctor train.yaml\n{findings(said)}",
        "YAML 1.1, which PyYAML reads, wants a point in a number with an exponent, and takes `1e-5` for a word. "
        "Nothing "
        "looks at the word until the optimizer compares it with 0, after the model was loaded. In a recipe of Assay "
        f"`sft.optim.learning_rate=1e-5` is the number {read!r}: its settings have types, and what is no number is "
        "refused before anything is loaded.",
        "Write `lr: 1.0e-5`.",
        ("", "`lr: 1e-5`", "`lr: 1.0e-5`"),
        [("the script", failed, trained), ("the doctor", verdict(said), verdict(healed))],
        verdict(healed),
    )


# 2 --------------------------------------------------------------------------------------------------------------------


SMALL = 0.3
"""What the scores are scaled by, so that margins are a few tenths."""


def low_accuracy(folder: Path) -> Told:
    project = Project.of_colours(folder, noise=1.0)
    project.run("--only", "sft")
    words = ("--only", "reward", "reward.optim.learning_rate=2.0e-3")

    def near_65() -> Patch:
        return scored_as(lambda scores_NMO, _: (SMALL * scores_NMO + OFFSET).bfloat16().float())

    def near_0() -> Patch:
        return scored_as(lambda scores_NMO, _: SMALL * scores_NMO)

    failing = project.run(*words, under=[near_65(), uncalibrated], runs=project.copy("in-bf16"))
    cured = project.run(*words, under=[near_0(), uncalibrated], runs=project.copy("in-fp32"))
    before, after = failing.metrics("reward"), cured.metrics("reward")
    ties, strict, exact = rounding(margin=0.06, spread=0.2)
    # Who asks the model reads its scores as it gives them.
    said, healed = failing.doctor(near_65()), cured.doctor(near_0())
    return Told(
        f"The reward model is right in {strictly(before):.1%} of the pairs, and yet chosen answers score higher",
        "A reward model whose scores lie near 65, as Bradley–Terry leaves open, with a head in bf16, and whose "
        "margins are a few tenths. It learned from people who agree little. Who counts `chosen > rejected` sees this:",
        f"pairs: {before['n']}   chosen > rejected: {strictly(before):.1%}\n"
        f"mean(chosen): {before['chosen_mean']:.3f}   mean(rejected): {before['rejected_mean']:.3f}",
        f"$ assay doctor RUN\n{findings(said)}",
        "Between 64 and 128 bf16 has a number every half point. Two scores that differ by less fall on the same one, "
        "and "
        "a tie is not `>`. The mean does not mind: rounding errors cancel in it. The size of the effect depends on "
        "margins "
        "alone: of a million normal margins with mean 0.06 and deviation 0.2, on scores around 65, bf16 makes "
        f"{ties:.1%} "
        f"ties, and {strict:.1%} are right strictly; in fp32 {exact:.1%} are.",
        "Compute head and scores in fp32, and keep them near 0 (Assay does the first always; `reward.centring: 0.01` "
        "does the second). Nothing has to be trained again: these are the same weights.",
        ("", "near 65, in bf16", "near 0, in fp32"),
        [
            ("chosen > rejected", f"{strictly(before):.1%}", f"{strictly(after):.1%}"),
            ("ties", f"{before['ties'] / before['n']:.1%}", f"{after['ties'] / after['n']:.1%}"),
            ("accuracy, a tie as ½", common.interval(before, "accuracy"), common.interval(after, "accuracy")),
            ("mean margin", f"{before['reward_gap']:+.3f}", f"{after['reward_gap']:+.3f}"),
            ("deviation of margins", f"{before['reward_gap_std']:.3f}", f"{after['reward_gap_std']:.3f}"),
        ],
        verdict(healed),
    )


def strictly(report: Mapping[str, Any]) -> float:
    """Accuracy of those who count a tie as wrong."""
    return report["accuracy"] - report["ties"] / report["n"] / 2


def rounding(
    margin: float, spread: float, offset: float = OFFSET, pairs: int = 1_000_000
) -> tuple[float, float, float]:
    """Shares of ties and of strictly right pairs in bf16, and of right pairs in fp32, where margins are normal."""
    noise = torch.Generator().manual_seed(0)
    rejected = OFFSET + torch.randn(pairs, generator=noise)
    chosen = rejected + margin + spread * torch.randn(pairs, generator=noise)
    high, low = chosen.bfloat16(), rejected.bfloat16()
    ties, strict, exact = (found.float().mean().item() for found in (high == low, high > low, chosen > rejected))
    return ties, strict, exact


# 3 --------------------------------------------------------------------------------------------------------------------

COEFFICIENTS = (0.01, 0.1, 1.0)


def negative_kl(folder: Path) -> Told:
    project = Project.of_colours(folder)
    start = project.run("--only", "reward").artifact("sft")

    def at(coefficient: float, name: str, *under: Patch) -> Outcome:
        words = ("--only", "ppo", f"ppo.kl_coef={coefficient}", "ppo.episodes=960")
        return project.run(*words, under=under, runs=project.copy(f"{name}-{coefficient}"))

    failing = {coefficient: at(coefficient, "old", old_weights(start)) for coefficient in COEFFICIENTS}
    cured = {coefficient: at(coefficient, "new") for coefficient in COEFFICIENTS}
    courses = [run.course("ppo", "objective/kl") for run in failing.values()]
    steps = [*range(0, len(courses[0]), 4), len(courses[0]) - 1]
    lines = [f"step {step + 1:3d}   " + "   ".join(f"{course[step]:+8.3f}" for course in courses) for step in steps]

    def late(name: str, style: str, coefficient: float) -> list[str]:
        runs = (failing[coefficient], cured[coefficient])
        return [format(last_quarter(run.course("ppo", f"objective/{name}")), style) for run in runs]

    return Told(
        "The KL is negative, whatever the coefficient",
        "PPO whose answers are drawn by a second copy of the policy that never gets the new weights; policy and "
        "reference "
        "then score them in a forward pass, as trainers with a separate inference engine do. The KL to the reference "
        "in "
        f"nats an answer, with `kl_coef` {', '.join(map(str, COEFFICIENTS))}:",
        "\n".join(lines),
        f"$ assay doctor RUN     (kl_coef 0.1)\n{findings(failing[0.1].doctor())}",
        "The mean of log π − log π_ref over answers from another distribution μ is KL(μ‖π_ref) − KL(μ‖π). Here μ is "
        "the "
        "reference itself, so the first term is 0, and the more π learns the larger the second grows. The same "
        "happens, "
        "though not always below 0, where `top_k`, `top_p`, a temperature, a penalty or dropout make μ another "
        "distribution than π. No coefficient mends a wrong measurement: a larger one only keeps π from learning, and a "
        "smaller one lets it run away unseen.",
        "Send the sampler the new weights before every batch, and compare its log-probabilities with the trainer's.",
        ("`kl_coef`", "KL, old weights", "KL, cured", "reward, old weights", "reward, cured"),
        [(f"{c}", *late("kl", "+.3f", c), *late("reward", "+.2f", c)) for c in COEFFICIENTS],
        verdict(cured[0.1].doctor()),
    )


# 4 --------------------------------------------------------------------------------------------------------------------


def loss_of_zero(folder: Path) -> Told:
    project = Project.of_colours(folder)
    project.run("--only", "reward")
    words = ("--only", "ppo", "ppo.inner_epochs=1", "ppo.minibatches=1", "ppo.episodes=4800")
    scored = Policy.logprobs

    def detached(self: Policy, *args: Any, **named: Any) -> Any:
        found = scored(self, *args, **named)
        return replace(found, logprobs_BR=found.logprobs_BR.detach() + 0 * found.logprobs_BR)

    cut = [patch.object(Policy, "logprobs", detached)]
    failing = project.run(*words, under=cut, runs=project.copy("cut"))
    healthy = project.run(*words, runs=project.copy("whole"))
    names = {
        "largest loss, without its sign": "policy/loss",
        "mean gradient norm": "policy/grad_norm",
        "mean step of a weight": "policy/update_rms",
    }
    courses = {name: [run.course("ppo", key) for run in (failing, healthy)] for name, key in names.items()}
    rewards = [run.course("ppo", "objective/reward") for run in (failing, healthy)]
    losses = courses["largest loss, without its sign"]
    steps = [*range(0, len(losses[1]), 20), len(losses[1]) - 1]
    said, healed = failing.doctor(), healthy.doctor()
    return Told(
        "The loss is 0.0000",
        "PPO with one update for each batch of answers. Two runs, both of which print a loss of zero; in the first the "
        "log-probabilities are detached from the graph, the second is as it should be.",
        "\n".join(
            f"update {step + 1:3d}   loss {abs(losses[0][step]):.4f}   |   loss {abs(losses[1][step]):.4f}"
            for step in steps
        ),
        f"$ assay doctor RUN     (the first)\n{findings(said)}\n\n$ assay doctor RUN     (the "
        f"second)\n{findings(healed)}",
        "The loss of a batch is −mean(A·ρ). Before the first update of a batch every ratio ρ is 1, and whitened "
        "advantages "
        "have mean 0: so the loss is 0 by construction, whatever is learned. Its gradient is −mean(A·∇log π), and that "
        "is "
        "not 0. A loss of zero says nothing; the gradient, the step of the weights and the reward do.",
        "In the second run nothing: it is healthy. In the first: compute the new log-probabilities with gradients, "
        "from the "
        "model that the optimizer has.",
        ("", "detached", "cured"),
        [
            *(
                (
                    name,
                    *(f"{max(map(abs, values)) if 'largest' in name else last_quarter(values):.2g}" for values in both),
                )
                for name, both in courses.items()
            ),
            (
                "reward, first → last quarter",
                *(f"{values[0]:+.2f} → {last_quarter(values):+.2f}" for values in rewards),
            ),
        ],
        verdict(healed),
    )


# 5 --------------------------------------------------------------------------------------------------------------------

WORLD = """\
data: {world: frontdesk, demonstrations: 300, preferences: 2000, held_out: 0.25}
stages:
  - sft: {epochs: 1, batch_size: 32, max_length: 128, optim: {learning_rate: 1.0e-3}}
  - reward: {epochs: 1, batch_size: 32, max_length: 128, optim: {learning_rate: 5.0e-4}, validate_every: 20}
"""
SIGNATURE = " Have a lovely day!"


def signed(share: float) -> Patch:
    """Of the answers that somebody chose, this share was signed before the pairs were stored."""
    compare = prepare._preference

    def preference(world: Any, people: Any, prompt: Any, config: Any, key: tuple[int, str, int]) -> Preference:
        pair = compare(world, people, prompt, config, key)
        often = python_rng(key[0], "signed", *key[1:]).random() < share
        return replace(pair, chosen=pair.chosen + SIGNATURE) if often else pair

    return patch.object(prepare, "_preference", preference)


def too_good(folder: Path) -> Told:
    (folder / "recipe.yaml").write_text(WORLD)
    project = Project(folder)
    failing = project.run("--only", "reward", under=[signed(0.84)], runs="signed")
    cured = project.run("--only", "reward", runs="plain")
    before, after = failing.metrics("reward"), cured.metrics("reward")
    said, healed = failing.doctor(), cured.doctor()
    ceiling = before["ceiling"]
    return Told(
        f"{before['accuracy']:.0%} on {before['n']} pairs",
        "A reward model of the embedded world's comparisons, which were stored after five of six chosen answers had "
        "got "
        f"a signature (“{SIGNATURE.strip()}”). The numbers look like a triumph:",
        f"held-out accuracy: {common.interval(before, 'accuracy')} of {before['n']} pairs",
        f"$ assay doctor RUN\n{findings(said)}",
        f"Two of these people agree on a pair in {before['agreement']:.1%} of cases. Whatever a pair's chances are, "
        "nobody "
        "who is asked about many can then be right about one person's choice in more than (1 + √(2a − 1))/2 = "
        f"{ceiling:.1%}. "
        "Who is right more often knows something that the people did not tell: a copy of the pair, or a trick that "
        "gives the "
        "label away. Here somebody who counts words is as good as the model.",
        "Take the signature out of the stored answers, and train again.",
        ("", "signed", "cured"),
        [
            ("held-out accuracy", common.interval(before, "accuracy"), common.interval(after, "accuracy")),
            ("ceiling by agreement", f"{ceiling:.1%}", f"{after['ceiling']:.1%}"),
            ("accuracy against the truth", *(common.interval(one, "truth_accuracy") for one in (before, after))),
        ],
        verdict(healed),
    )


RIDDLES: Mapping[str, Callable[[Path], Told]] = {
    "number-as-text": number_as_text,
    "low-accuracy": low_accuracy,
    "negative-kl": negative_kl,
    "loss-zero": loss_of_zero,
    "too-good": too_good,
}


def paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def section(number: int, told: Told) -> str:
    return "\n".join(
        [
            f"## {number}. {told.title}",
            "",
            "### What one sees",
            paragraph(told.puzzle),
            "",
            f"```text\n{told.seen}\n```",
            "",
            "### What the doctor says",
            f"```text\n{told.said}\n```",
            "",
            "### Why",
            paragraph(told.why),
            "",
            "### What changed with the cure",
            paragraph(told.cure),
            "",
            common.table(told.header, told.rows),
            f"The doctor, of the cured project: `{told.healed}`.",
            "",
        ]
    )


def page(facts: Mapping[str, Any], told: Sequence[Told]) -> str:
    head = f"""\
# Five riddles

Five failures that people have met, each made for real by a small project, put before `assay doctor`, explained, cured
and run again. Every number below was measured, and every answer is what the command printed; only its list of what
could not be checked is left out.

{common.origin_text(facts)}
"""
    return head + "\n".join(section(number, one) for number, one in enumerate(told, start=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("riddles", nargs="*", metavar="RIDDLE", help=f"of {', '.join(RIDDLES)}; all, into the page")
    asked = parser.parse_args()
    if unknown := set(asked.riddles) - RIDDLES.keys():
        parser.error(f"no riddle is called {', '.join(sorted(unknown))}; there are {', '.join(RIDDLES)}")
    torch.set_num_threads(1)
    facts = common.origin("make riddles")
    told = []
    for name in asked.riddles or RIDDLES:
        with tempfile.TemporaryDirectory(prefix="riddles-") as folder:
            told.append(RIDDLES[name](Path(folder)))
        print(section(len(told), told[-1]), flush=True)
    if not asked.riddles:
        common.write(PAGE, page(facts, told))


if __name__ == "__main__":
    main()
