"""The numbers that show a fault, taken from evidence: what the pictures of the doctor's pages draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import yaml
from bench.doctor_trial import counterparts
from bench.doctor_trial.drawing import (
    POINTS,
    Amounts,
    Given,
    Marks,
    Numbers,
    Row,
    pick,
)
from transformers import AutoModelForSequenceClassification

from assay import rng
from assay.algorithms.kl import k3
from assay.config import check
from assay.data.baselines import outcomes
from assay.data.pack import collate
from assay.data.render import Renderer
from assay.doctor import data, kl, probe_batch, probe_policy, probe_reward, probing, recipe, reward, sft
from assay.doctor.data import Data, Reading
from assay.doctor.finding import Mode
from assay.doctor.labels import Scored
from assay.doctor.log import Log
from assay.doctor.machine import Cursor, Machine, Settings
from assay.doctor.probe_batch import PromptBatch, StepProbe
from assay.doctor.probe_policy import PolicyProbe
from assay.doctor.probe_reward import RewardProbe
from assay.doctor.recipe import Disk, Memory, Planned
from assay.doctor.tokens import Prompts, Tokens
from assay.document import read_yaml
from assay.models.policy import Policy
from assay.rollout.config import SamplingParams
from assay.stages.config import RewardConfig
from assay.statistics import Interval, wilson


def odd_rows(mode: Mode) -> Callable[[Given], Amounts]:
    """Share of the rows that the loader left out for reasons of this mode."""
    (pattern,) = (pattern for other, pattern in data.REASONS if other is mode)

    def measure(given: Given) -> Amounts:
        read = pick(given, Reading)
        odd = sum(count for reason, count in read.dropped.items() if pattern.search(reason))
        return {"rows left out": wilson(odd, read.rows, confidence=data.SURE)}

    return measure


def copied_prompts(given: Given) -> Amounts:
    prompts = pick(given, Data).prepared.prompts
    held_out = [*prompts.validation, *prompts.test]
    return {"held-out prompts\nnearly trained on": wilson(data.near_copies(prompts.train, held_out), len(held_out))}


def tricks(given: Given) -> Amounts:
    found = pick(given, Data)
    margins = data.rivals(found.pairs, found.held_out)
    return {data.WORDS[name]: data.accuracy(outcomes(of), found.held_out) for name, of in margins.items()}


def own_deviations(given: Given) -> Numbers:
    """Margins in their standard deviation: calibration has made those of a wrong model small."""
    found = pick(given, Scored).margins
    return found / found.std()


def room(given: Given) -> Numbers:
    """Tokens that prompt and answer need, as a share of what a row holds."""
    found = pick(given, Tokens)
    whole = Renderer(found.renderer.tokenizer, template=found.renderer.template, max_length=2**20)
    rows = [whole.row(prompt, reply) for item in found.asked for prompt, reply in item]
    return [len(row.ids) / found.renderer.max_length for row in rows if row]


def contradicted(given: Given) -> tuple[Numbers, Numbers]:
    """Share of labels that the model is against, in fifths of its certainty."""
    scored = pick(given, Scored)
    order = np.argsort(-np.abs(scored.margins), kind="stable")
    return range(1, 6), [1 - part.mean() for part in np.array_split(scored.right[order], 5)]


def boundary(given: Given) -> list[Row]:
    """Tokens around the end of the prompt, as it is asked and as it is trained on."""
    found = pick(given, Tokens)
    (prompt, reply), *_ = found.asked[0]
    row = found.renderer.row(prompt, reply)
    assert row
    asked = found.renderer.prompt(prompt)
    first = len(asked) - 4
    trained = row.ids[first : first + 6]
    differs = [position >= 4 or wanted != got for position, (wanted, got) in enumerate(zip(asked[first:], trained))]  # noqa: B905
    return [
        Row("asked", words(found.renderer.tokenizer, asked[first:]), [False] * 4),
        Row("trained on", words(found.renderer.tokenizer, trained), [*differs, False, False]),
    ]


def begins(given: Given) -> list[Row]:
    found = pick(given, Tokens)
    ids, begin = found.whole[0].ids[:6], found.renderer.tokenizer.bos_token_id
    return [Row("", words(found.renderer.tokenizer, ids), [n > 0 and i == begin for n, i in enumerate(ids)])]


def padded_prompts(given: Given) -> list[Row]:
    """The shortest and the longest prompt of the batch."""
    batch = pick(given, PromptBatch)
    assert batch.policy
    order = batch.attention_mask.sum(1).argsort()
    return [
        Row(
            name,
            words(batch.policy.tokenizer, batch.input_ids[i].tolist()),
            [keep == 0 and int(batch.attention_mask[i][-1]) == 0 for keep in batch.attention_mask[i].tolist()],
        )
        for name, i in (("short", order[0]), ("long", order[-1]))
    ]


def words(tokenizer: object, ids: Sequence[int]) -> list[str]:
    """Tokens as people read them."""
    return [repr(text)[1:-1].replace(" ", "␣") for text in tokenizer.batch_decode([[i] for i in ids])]  # type: ignore[attr-defined]


def readings(given: Given) -> list[Row]:
    """What PyYAML and Assay make of a learning rate, by how it is spelled."""
    rows = []
    for spelled in pick(given, Settings).texts.values():
        theirs = isinstance(yaml.safe_load(f"lr: {spelled}")["lr"], str)
        ours = bool(check(RewardConfig, read_yaml(f"optim:\n  learning_rate: {spelled}\n", "recipe.yaml"))[1])
        said = ["text" if theirs else "a number", "refused" if ours else "a number"]
        rows.append(Row(spelled, said, [theirs, ours]))
    return rows


def passes(given: Given) -> list[Row]:
    """What tells the ways of standing still apart: what is 0, or as good as that, is marked."""
    names = ("objective/reward_std", "policy/grad_norm", "policy/update_rms", "objective/kl")
    logs = [one for one in given if isinstance(one, Log)]
    values = [[float(np.abs(log[name].values).max()) for name in names] for log in logs]
    causes = ("flat reward", "cut graph", "rate 0", "shared reference") if len(logs) > 1 else ("",)
    return [
        Row(cause, [f"{value:.2g}" for value in row], [value < NEXT_TO_NOTHING for value in row])
        for cause, row in zip(causes, values, strict=True)
    ]


NEXT_TO_NOTHING = 1e-5
VOCABULARY = 330
"""Of the toy model."""


def margins(given: Given) -> tuple[Numbers, Numbers]:
    """In fp32, and as the model of the counterparts.evidence gives them."""
    exact, seen = pick(counterparts.evidence(counterparts.undecided), RewardProbe), pick(given, RewardProbe)
    return gaps(probe_reward.scores(exact.model, exact.rows)), gaps(probe_reward.scores(seen.model, seen.rows))


def gaps(scores_N: torch.Tensor) -> Numbers:
    return (scores_N[0::2] - scores_N[1::2]).tolist()


def with_pads(given: Given) -> tuple[Numbers, Numbers]:
    probe = pick(given, RewardProbe)
    alone = torch.cat([probe_reward.scores(probe.model, [row]) for row in probe.rows])
    return alone.tolist(), probe_reward.scores(probe.model, probe.rows, padded=True).tolist()


def before_and_after_saving(given: Given) -> tuple[Numbers, Numbers]:
    """Read again as transformers does, which draws a head that is missing anew."""
    probe = pick(given, RewardProbe)
    with probe_reward.folder_of(probe) as folder:
        torch.manual_seed(0)
        again = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
        with torch.no_grad():
            after = [again(torch.tensor([row.ids])).logits.item() for row in probe.rows]
    return probe_reward.scores(probe.model, probe.rows).tolist(), after


def apart(
    given: Given, one: Callable[[PolicyProbe], torch.Tensor], other: Callable[[PolicyProbe], torch.Tensor]
) -> tuple[Numbers, Numbers]:
    """By how much two readings of the same tokens differ."""
    probe = pick(given, PolicyProbe)
    differences = (one(probe) - other(probe)).abs().tolist()
    return range(1, len(differences) + 1), differences


def alone(probe: PolicyProbe) -> torch.Tensor:
    return torch.cat([probe_policy.logprobs(probe.policy, [row]) for row in probe.rows])


def beside_pads(given: Given) -> tuple[Numbers, Numbers]:
    return apart(given, alone, lambda probe: probe_policy.logprobs(probe.policy, probe.rows, pads="left"))


def reference_and_sft(given: Given) -> tuple[Numbers, Numbers]:
    def by(model: Policy | None) -> Callable[[PolicyProbe], torch.Tensor]:
        assert model
        return lambda probe: probe_policy.logprobs(model, probe.rows)

    probe = pick(given, PolicyProbe)
    return apart(given, by(probe.sft), by(probe.reference))


def sampler_and_trainer(given: Given) -> tuple[Numbers, Numbers]:
    """What every sampled token adds to KL(sampler‖trainer), k3."""
    probe = pick(given, PolicyProbe)
    assert probe.engine
    asked = list(probe.prompts) * 4
    seeds = [rng.derive(0, i) for i in range(len(asked))]
    drawn = probe.engine.generate(asked, SamplingParams(max_new_tokens=probe_policy.ANSWER), seeds=seeds)
    sampled = torch.tensor([x for answer in drawn for x in answer.logprobs])
    terms = k3(sampled, probe_policy.logprobs(probe.policy, [answer.row for answer in drawn])).tolist()
    return range(1, len(terms) + 1), terms


def split_gradients(given: Given) -> tuple[Numbers, Numbers]:
    """The largest parts of the gradient of all rows at once, and the same of rows one by one."""
    whole, parts = (probe_batch.gradient(pick(given, StepProbe), size) for size in (None, 1))
    largest = whole.abs().argsort(descending=True)[:POINTS]
    return whole[largest].tolist(), parts[largest].tolist()


def surprises(given: Given) -> Numbers:
    """Of the words and ends of answers of one word, which are all that the model was shown."""
    probe = pick(given, PolicyProbe)
    rows = [row for row in probe.rows if len(row.ids) - row.prompt_length == 2]
    return (-probe_policy.logprobs(probe.policy, rows)).tolist()


def above_lowest(given: Given) -> tuple[Numbers, Numbers]:
    """The validation loss in the second half of a run, in percent above its lowest."""
    series = pick(given, Log)["eval/loss"]
    kept = series.steps > series.steps[-1] / 2
    return series.steps[kept], 100 * (series.values[kept] / series.values.min() - 1)


def adapter_gradients(given: Given) -> tuple[Numbers, Numbers]:
    found = pick(given, PolicyProbe).policy
    parameters = found.parameters_trained()
    with probing.unchanged(parameters):
        loss = -probe_policy.logprobs(found, pick(given, PolicyProbe).rows, gradient=True).sum()
        if loss.requires_grad:
            loss.backward()
        norms = [0.0 if p.grad is None else p.grad.norm().item() for n, p in parameters.items() if ".lora_B." in n]
    return range(1, len(norms) + 1), norms


def activations(given: Given) -> tuple[Numbers, Numbers]:
    """The largest output of every module in turn, computed in fp32."""
    probe = pick(given, PolicyProbe)
    largest: list[float] = []

    def watch(module: torch.nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            largest.append(output.abs().max().item())

    leaves = [module for module in probe.policy.model.float().modules() if not list(module.children())]
    hooks = [module.register_forward_hook(watch) for module in leaves]
    batch = collate(probe.rows, probe.policy.pad_id)
    with torch.no_grad():
        probe.policy.model(input_ids=batch.input_ids)
    for hook in hooks:
        hook.remove()
    return range(1, len(largest) + 1), largest


def drift(given: Given) -> Amounts:
    log = pick(given, Log)
    return {"|mean score| in\nstandard deviations": abs(reward.mean_score(log)) / reward.held_out(log, "score_std")}


def measured(log: Log, name: str, unit: float = 1.0, plus: float = 0.0) -> Interval:
    """A number of the report with its interval."""
    return Interval(*(plus + log.number(f"{name}{end}") / unit for end in ("", "_low", "_high")))


def length_taste(given: Given) -> Amounts:
    return {"longer preferred\nmore than by people": measured(pick(given, Log), "length_excess")}


def growth(given: Given) -> Amounts:
    log = pick(given, Log)
    before = log.number("length_tokens_before")
    return {"tokens an answer,\nafter to before": measured(log, "length_tokens_change", before, 1.0)}


def above_agreement(given: Given) -> Amounts:
    log = pick(given, Log)
    return {"held-out accuracy\nabove the ceiling": measured(log, "accuracy", 1.0, -log.number("ceiling"))}


def slower(given: Given) -> Amounts:
    found = pick(given, Machine)
    return {"time of a product,\nto fp32": found.seconds[found.used] / found.seconds["float32"]}


def rates(given: Given) -> Amounts:
    """Learning rates of the stages, over those that such models are known to bear well."""
    found: dict[str, float] = {}
    for one in given:
        if isinstance(one, Planned) and one.parameters and one.learning_rate:
            _, most = recipe.known_rates(one.parameters, one.kind, adapters=one.config["lora"] is not None)
            found[one.where] = one.learning_rate / most
    return found


def memory(given: Given) -> Amounts:
    """Of the stage that needs most."""
    found = max((one for one in given if isinstance(one, Memory)), key=lambda one: one.needed_mb)
    return {"the largest stage\nneeds": found.needed_mb, "this machine\nhas": found.there_mb}


def disk(given: Given) -> Amounts:
    found = pick(given, Disk)
    return {"models and a\ncheckpoint need": found.needed_mb, "the disk\nhas left": found.free_mb}


def prompt_lengths(given: Given) -> Numbers:
    """Tokens of every prompt, over the room that it has."""
    found = pick(given, Prompts)
    whole = Renderer(found.renderer.tokenizer, template=found.renderer.template, max_length=2**20)
    return [len(whole.prompt(prompt)) / found.room for prompt in found.prompts]


def win_rate(given: Given) -> Amounts:
    return {"comparisons with\nits start, won": measured(pick(given, Log), "win_rate")}


def refusals(given: Given) -> Amounts:
    """Of either kind of request, before the training and after it."""
    final = pick(given, Log).final
    return {
        f"{what},\n{when}": Interval(*(final[f"safety_{when}"][f"{name}{end}"] for end in ("", "_low", "_high")))
        for what, name in (("harmless", "over_refusal"), ("harmful", "harmful_refusal"))
        for when in ("before", "after")
    }


def along_pairs(name: str) -> Callable[[Given], tuple[Numbers, Numbers]]:
    """A metric over the pairs that were learnt from, however many a step takes."""

    def measure(given: Given) -> tuple[Numbers, Numbers]:
        log = pick(given, Log)
        return log.config["batch_size"] * log[name].steps, log[name].values

    return measure


def blown_up(given: Given) -> Marks:
    start = sft.beginning(pick(given, Log))
    return {"red: a late mean above": max(sft.WORSE * start, start + sft.LEAST)}


def as_planned(given: Given) -> tuple[Numbers, Numbers]:
    cursor = pick(given, Cursor)
    pairs = list(zip(cursor.planned, cursor.taken, strict=False))
    return range(1, len(pairs) + 1), [len(set(planned) & set(taken)) for planned, taken in pairs]


def twice_the_start(given: Given) -> Marks:
    return {"red: twice the start's": kl.EXPLODED * pick(given, Log)["objective/entropy"].first}
