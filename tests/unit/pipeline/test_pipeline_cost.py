"""The cost model: bytes and steps counted by hand, what grows with what, and the refusal of what cannot fit."""

from __future__ import annotations

import copy
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny
from tests.unit.pipeline.fakes import Fakes
from transformers import AutoConfig

from assay.data.pack import collate
from assay.data.prepared import Prepared, Splits
from assay.data.render import Renderer, Row
from assay.errors import UsageError
from assay.models.config import LoraConfig
from assay.models.heap import LARGE
from assay.models.policy import load_policy
from assay.pipeline import environment, footprint, plan, rates
from assay.pipeline.architecture import TEXTS, Architectures
from assay.pipeline.artifacts import Store
from assay.pipeline.footprint import LiveBytes, Model
from assay.pipeline.inputs import prepare
from assay.pipeline.recipe import load_recipe
from assay.pipeline.runner import Request, check_up, run, selected
from assay.pipeline.workload import Pass, decoded
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine, Slots
from assay.types import Preference, Prompt

WIDTH, WORDS, INNER, BLOCKS = 32, 100, 80, 3
LLAMA = AutoConfig.for_model(
    "llama",
    hidden_size=WIDTH,
    vocab_size=WORDS,
    intermediate_size=INNER,
    num_hidden_layers=BLOCKS,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
    pad_token_id=0,
)
MODEL = Model(LLAMA, trained=True)
SOME = [Row(list(range(16)), 11) for _ in range(4)]

RECIPE = """\
data: {world: frontdesk, documents: 60, demonstrations: 40, preferences: 40}
stages:
  - pretrain: {layers: 2, width: 64, heads: 2, vocabulary: 400, batch_size: 256, max_length: 256}
  - sft: {batch_size: 32, max_length: 256}
"""


def test_a_llama_has_the_parameters_and_the_cache_that_its_shape_says() -> None:
    attention = WIDTH * WIDTH * 2 + WIDTH * (WIDTH // 2) * 2  # two of four heads have keys and values
    block = attention + 3 * WIDTH * INNER + 2 * WIDTH
    assert MODEL.parameters == WORDS * WIDTH + BLOCKS * block + WIDTH
    assert MODEL.weights == 4 * MODEL.parameters
    assert MODEL.trained_parameters == MODEL.parameters
    assert MODEL.cached == (WIDTH // 2) * 4


def test_lora_trains_r_numbers_for_every_input_and_output_of_its_layers() -> None:
    adapters = replace(MODEL, lora=LoraConfig(r=4, target_modules=("q_proj", "v_proj")))
    assert adapters.trained_parameters == BLOCKS * 4 * ((WIDTH + WIDTH) + (WIDTH + WIDTH // 2))


def test_live_bytes_are_those_of_the_tensors_that_have_not_been_freed() -> None:
    with LiveBytes() as live:
        first = torch.ones(10, 10)  # 400 B
        second = first.view(5, 20) + 1  # a view has no memory of its own: 800 B
        del first
        third = torch.ones(25)  # 500 B
    assert (live.now, live.most) == (500, 800)
    assert len(second) + len(third) == 30


def test_a_large_tensor_is_mapped_and_a_small_one_shares_the_heap() -> None:
    with LiveBytes(1.4) as live:
        small = torch.empty(250)
        large = torch.empty(LARGE // 4)
    assert live.now == 1.4 * small.nbytes + large.nbytes


def held(model: Model, rows: list[Row], *, learns: bool = True, words: bool = True, **more: bool) -> int:
    task = Pass("policy" if words else "reward", tuple(rows), 0, learns=learns, words=words, **more)
    reader, _ = replace(model, trained=False).stand_in(1, words=64).build()
    return model.held(task, reader)


def test_reading_holds_less_than_learning_and_lora_and_checkpoints_less_than_everything() -> None:
    everything = held(MODEL, SOME)
    assert held(replace(MODEL, trained=False), SOME, learns=False) < everything
    assert held(replace(MODEL, lora=LoraConfig(r=2)), SOME) < everything
    assert held(replace(MODEL, gradient_checkpointing=True), SOME) < everything


def test_a_pass_over_rows_that_are_not_trees_is_rehearsed_too() -> None:
    """GPT-Neo's local attention: tensors that have a device and no numbers, so that nothing may look at one."""
    neo = AutoConfig.for_model(
        "gpt_neo",
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        vocab_size=WORDS,
        attention_types=[[["global", "local"], 1]],
        bos_token_id=0,
        eos_token_id=0,
    )
    model = Model(neo, trained=True)
    apart, alike = (held(model, SOME, alike=alike) for alike in (False, True))
    assert abs(alike - apart) < 0.1 * apart


def test_what_a_pass_holds_is_what_is_then_alive() -> None:
    """The same pass through the same model, with numbers this time."""
    rows = [Row(list(range(64)), 40) for _ in range(8)]
    with LiveBytes(footprint.HEAP_SHARE) as live:
        backbone, _ = MODEL.build()
        weights = live.now
        live.most = live.now
        batch = collate(rows, 0)
        states_ND = backbone.states(batch, footprint.read_at(batch, ends=True))
        states_ND.sum().backward()
        measured = live.most - weights
    assert held(MODEL, rows, words=False) == pytest.approx(measured, rel=0.05)


def test_what_every_run_imports_before_its_first_stage_is_counted(tmp_path: Path) -> None:
    """In a process of its own: here the other tests have imported it all."""
    file = tmp_path / "r.yaml"
    file.write_text("model: embedded\ndata: {world: frontdesk, preferences: 40}\nstages: [reward: {max_length: 96}]\n")
    counted = """
import sys
from pathlib import Path
from assay.pipeline import environment, plan
from assay.pipeline.inputs import prepare
from assay.pipeline.recipe import load_recipe
from assay.pipeline.runner import Request, selected
named = load_recipe(sys.argv[1], [])
steps = selected(named, Request(), fetch=False)
estimator = plan.estimator_of(named, steps, prepare(named.recipe.data, 0))
before = environment.resident_mb()
estimator.count_process()
print("sklearn.linear_model" in sys.modules, estimator.process_mb - before)
"""
    told = subprocess.run([sys.executable, "-c", counted, str(file)], capture_output=True, text=True, check=True)
    imported, grown_mb = told.stdout.split()
    assert imported == "True"
    assert float(grown_mb) > 40


class Counted(Sequence[Preference]):
    """Many pairs, and how many of them were read."""

    read = 0

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: Any) -> Any:
        self.read += 1
        return Preference(Prompt.ask(f"what is {index}?"), f"the number {index}", "nothing")


def test_the_tokenizer_of_a_model_that_is_not_here_is_made_from_as_much_text_as_it_needs(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: someone/elsewhere\ndata: {world: frontdesk}\nstages: [sft: {}]\n")
    steps = selected(load_recipe(str(file), [f"runs_dir={tmp_path / 'runs'}"]), Request(), fetch=False)
    pairs = Counted()
    known = Architectures({step.id: step for step in steps}, Prepared(preferences=Splits(pairs, [], [])))
    assert len(known.tokenizer(steps[1])) > 256
    assert pairs.read == TEXTS / 2  # of two answers each


def test_activations_grow_in_proportion_to_the_rows() -> None:
    frozen = replace(MODEL, lora=LoraConfig(r=1))
    rows = [Row([i % 100] * 100, 60) for i in range(64)]
    sizes = [held(frozen, rows[:count], words=False) for count in (16, 32, 64)]
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.05)


def test_a_later_micro_batch_finds_the_gradients_of_the_first() -> None:
    first, later = (held(MODEL, SOME, again=again) for again in (False, True))
    assert MODEL.weights * 0.9 < later - first < MODEL.weights * footprint.HEAP_SHARE * 1.1


@pytest.mark.parametrize("blocks", [1, 2, 3, 12])
def test_what_two_stand_ins_take_is_carried_on_to_all_blocks(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that shows 5 s for what every model does once and 2 s for each block."""
    config = copy.deepcopy(LLAMA)
    config.num_hidden_layers = blocks
    speed = rates.Rates(Model(config, trained=True))

    def shown(works: Sequence[Callable[[], None]], _: str) -> list[float]:
        for work in works:
            work()
        return [5 + 2.0 * backbone.model.config.num_hidden_layers for backbone, _ in speed._built]

    monkeypatch.setattr(rates, "quickest", shown)
    assert speed.passing(Pass("policy", tuple(SOME), 0, learns=True)) == pytest.approx(5 + 2 * blocks)
    assert speed.update() == pytest.approx(5 + 2 * blocks)
    assert speed.token(2, 8, "trained") == pytest.approx(5 + 2 * blocks)


@pytest.mark.parametrize(
    ("lengths", "most", "expected"),
    [
        ([1, 1], 2, (0, 0)),  # the first token is drawn from the prompt
        ([3], 4, (2, 2)),
        ([3, 3], 2, (2, 4)),
        ([3, 3], 1, (4, 4)),
        ([2, 11], 2, (10, 11)),  # the short one makes way after its step
    ],
)
def test_decoding_steps_are_those_of_the_engine(
    lengths: list[int], most: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decoded(lengths, most) == expected
    assert steps_of_the_engine(lengths, most, monkeypatch) == expected


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("most", [3, 10, 24])
def test_decoding_many_answers_takes_the_steps_of_the_engine(
    seed: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = random.Random(seed)
    lengths = [noise.randint(1, 16) for _ in range(noise.randint(8, 60))]
    assert decoded(lengths, most) == steps_of_the_engine(lengths, most, monkeypatch)


def steps_of_the_engine(lengths: list[int], most: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Steps that the engine itself takes for answers of these lengths, and the rows of all of them together."""
    policy, rows, step = load_policy(tiny.folder("llama"), trainable=False), list[int](), Engine._step

    def counted(engine: Engine, slots: Slots, *settings: Any) -> None:
        rows.append(len(slots.samples))
        step(engine, slots, *settings)

    monkeypatch.setattr(Engine, "_step", counted)
    monkeypatch.setattr(Engine, "_ends_here", lambda engine, sample, stops: len(sample.ids) == lengths[sample.seed])
    engine = Engine(policy, Renderer(policy.tokenizer, max_length=64), max_batch=most)
    prompts = [Prompt.ask("what time is it?")] * len(lengths)
    given = engine.generate(prompts, SamplingParams(max_new_tokens=16), seeds=range(len(lengths)))
    assert [len(answer.ids) for answer in given] == lengths
    return len(rows), sum(rows)


def test_what_cannot_fit_is_refused_with_settings_that_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    named = load_recipe(str(file), [f"runs_dir={tmp_path / 'runs'}"])
    steps = selected(named, Request(), fetch=False)
    data = prepare(named.recipe.data, 0)
    store = Store(tmp_path / "runs")
    estimator = plan.check_memory(named, steps, store, data)
    needed = estimator.of(steps[1], 1)
    assert needed is not None
    monkeypatch.setattr(environment, "resident_mb", lambda: estimator.process_mb)
    monkeypatch.setattr(plan, "ALLOWED", 1.0)
    monkeypatch.setattr(environment, "memory_mb", lambda device: needed.memory_mb - 5)
    with pytest.raises(UsageError, match=r"pretrain would need about .* MB of memory") as refused:
        plan.check_memory(named, steps, store, data)
    advice = refused.value.hint.removeprefix("this would fit: ")
    again = load_recipe(str(file), [f"runs_dir={tmp_path / 'runs'}", *words_of(advice)])
    plan.check_memory(again, selected(again, Request(), fetch=False), store, data)
    assert not (tmp_path / "runs").exists()


def test_products_are_compiled_anew_by_each_of_the_first_stages_still_to_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    named = load_recipe(str(file), [f"runs_dir={tmp_path / 'runs'}"])
    steps = selected(named, Request(), fetch=False)
    monkeypatch.setattr(Model, "code", 50 * 2**20)

    def memory(*to_make: str) -> float:
        estimator = plan.estimator_of(named, steps, data)
        estimator.to_make = to_make
        estimate = estimator.of(steps[2], 1)
        assert estimate is not None
        return estimate.memory_mb

    data = prepare(named.recipe.data, 0)
    alone = memory("sft")
    assert memory() == alone, "it is there already"
    assert memory("pretrain", "sft") == pytest.approx(alone + 50)
    assert memory("a", "b", "c", "d", "sft") == pytest.approx(alone + 100)


SAMPLING = """\
model: embedded
data: {world: frontdesk, demonstrations: 100, preferences: 300}
stages:
  - sft: {max_length: 96}
  - reward: {max_length: 96, lora: {r: 4}}
  - ppo: {max_length: 96, batch_size: 128, lora: {r: 4}, sampling: {max_new_tokens: 48}, episodes: 256}
  - preference: {max_length: 96, batch_size: 64, lora: {r: 4}, sampling: {max_new_tokens: 48}}
  - evaluate: {max_length: 96, sampling: {max_new_tokens: 48}}
"""


def test_what_is_advised_for_every_stage_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit below what most stages would take: one refusal names them all, and its advice makes all of them fit."""
    file = tmp_path / "r.yaml"
    file.write_text(SAMPLING)
    words = [f"runs_dir={tmp_path / 'runs'}"]
    named = load_recipe(str(file), words)
    steps = selected(named, Request(), fetch=False)
    data, store = prepare(named.recipe.data, 0), Store(tmp_path / "runs")
    monkeypatch.setattr(environment, "resident_mb", lambda: 100.0)
    estimates = [plan.check_memory(named, steps, store, data).of(step, 8) for step in steps if step.node]
    needed = sorted(estimate.memory_mb for estimate in estimates if estimate)
    monkeypatch.setattr(plan, "ALLOWED", 1.0)
    monkeypatch.setattr(environment, "memory_mb", lambda device: needed[1] + 1)
    with pytest.raises(UsageError) as refused:
        plan.check_memory(named, steps, store, data)
    assert refused.value.what.count("would need about") == 3
    again = load_recipe(str(file), [*words, *words_of(refused.value.hint.removeprefix("this would fit: "))])
    plan.check_memory(again, selected(again, Request(), fetch=False), store, data)


def words_of(advice: str) -> list[str]:
    """Settings as the shell would pass them: `a=1 b={r: 8}`."""
    return re.findall(r"\S+=(?:\{.*?\}|\S+)", advice)


def test_a_run_that_cannot_fit_ends_before_its_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    monkeypatch.setattr(environment, "memory_mb", lambda device: 100)
    fakes = Fakes()
    with pytest.raises(UsageError, match="pretrain would need"):
        run(load_recipe(str(file), [f"runs_dir={tmp_path / 'runs'}"]), fakes.request(before=check_up))
    assert fakes.called == []
