"""How responses end, what is returned of them, and what the engine refuses."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from tests import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from assay.data.pack import collate
from assay.data.render import Renderer
from assay.errors import ModelError, TrainingError, UsageError
from assay.models.policy import Policy, load_policy
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine
from assay.rollout.stops import StopStrings
from assay.types import Prompt

PROMPTS = [Prompt.ask(text) for text in ("what time is it?", "could you help me, please?", "the quick brown fox", "no")]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(tiny.folder("llama"), trainable=False)


@pytest.fixture
def engine(policy: Policy) -> Engine:
    return Engine(policy, Renderer(policy.tokenizer, template="chat", max_length=64), max_batch=8)


def scripted(engine: Engine, monkeypatch: pytest.MonkeyPatch, *texts: str, end: bool = True) -> list[list[int]]:
    """Make the engine draw the given texts, byte by byte, so that every string is split across tokens."""
    vocabulary = engine.policy.tokenizer.get_vocab()
    scripts = [[vocabulary["Ġ" if c == " " else c] for c in text] for text in texts]
    if end:
        scripts = [[*script, engine.renderer.eos_id] for script in scripts]
    step = iter(range(1000))

    def next_token(logits: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        now = next(step)
        tokens = [script[min(now, len(script) - 1)] for script in scripts]
        return torch.tensor(tokens), torch.zeros(len(tokens))

    monkeypatch.setattr("assay.rollout.engine.draw", next_token)
    return scripts


def test_the_end_token_is_kept_in_the_ids_and_ends_the_sample(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    script = scripted(engine, monkeypatch, "yes, of course")[0]
    [got] = engine.generate(PROMPTS[:1], SamplingParams(max_new_tokens=30), seeds=[0])
    assert (got.ids, got.text, got.finish) == (script, "yes, of course", "stop")
    assert len(got.logprobs) == len(got.ids)


def test_an_engine_that_is_let_go_lets_its_model_go() -> None:
    """Or every model that was ever sampled from would stay in memory until the process ends."""
    policy = load_policy(tiny.folder("llama"), trainable=False)
    model = weakref.ref(policy.model)
    engine = Engine(policy, Renderer(policy.tokenizer, template="chat", max_length=64), max_batch=8)
    engine.generate(PROMPTS[:1], SamplingParams(max_new_tokens=2), seeds=[0])
    del policy, engine
    gc.collect()
    assert model() is None


def test_a_sample_that_runs_out_of_tokens_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    script = scripted(engine, monkeypatch, "yes, of course")[0]
    [got] = engine.generate(PROMPTS[:1], SamplingParams(max_new_tokens=6), seeds=[0])
    assert (got.ids, got.text, got.finish) == (script[:6], "yes, o", "length")


def test_an_end_token_at_the_last_place_is_a_stop(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(engine, monkeypatch, "yes")
    [got] = engine.generate(PROMPTS[:1], SamplingParams(max_new_tokens=4), seeds=[0])
    assert got.finish == "stop"


@pytest.mark.parametrize(
    ("stop", "text", "taken"),
    [
        (("of",), "yes,", len("yes, of")),
        (("course", "es"), "y", len("yes")),
        (("s, ",), "ye", len("yes, ")),
        (("zebra",), "yes, of course", len("yes, of course") + 1),
    ],
)
def test_a_stop_string_ends_the_sample_though_it_is_split_across_tokens(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, stop: tuple[str, ...], text: str, taken: int
) -> None:
    scripted(engine, monkeypatch, "yes, of course")
    [got] = engine.generate(PROMPTS[:1], SamplingParams(max_new_tokens=30, stop=stop), seeds=[0])
    assert (got.text, got.finish, len(got.ids)) == (text, "stop", taken)


def test_a_stop_string_that_can_never_come_is_one_error(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopStrings, "alone", ["a", "b", " "])  # all that this tokenizer can write
    scripted(engine, monkeypatch, "abc")
    with pytest.raises(UsageError, match=r"sampling\.stop: 'b c' can never stand in an answer.* holds 'c'") as caught:
        engine.generate(PROMPTS[:1], SamplingParams(max_new_tokens=5, stop=("ab", "b c")), seeds=[0])
    assert "sampling.stop" in caught.value.hint


def test_a_stop_string_inside_one_token_is_found(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    token = engine.policy.tokenizer("receptionist", add_special_tokens=False).input_ids
    assert len(token) < len("receptionist")
    monkeypatch.setattr("assay.rollout.engine.draw", lambda logits, *_: (torch.tensor(token[:1]), torch.zeros(1)))
    piece = engine.policy.tokenizer.decode(token[:1])
    [got] = engine.generate(PROMPTS[:1], SamplingParams(max_new_tokens=5, stop=(piece[:1],)), seeds=[0])
    assert (len(got.ids), got.text) == (1, "")


def test_the_plain_template_stops_where_the_model_begins_to_speak_for_the_human(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(policy, Renderer(policy.tokenizer, template="plain", max_length=96), max_batch=8)
    vocabulary = policy.tokenizer.get_vocab()
    script = [vocabulary[{"\n": "Ċ", " ": "Ġ"}.get(c, c)] for c in "sure\n\nHuman: go on"]
    steps = iter(script)
    monkeypatch.setattr("assay.rollout.engine.draw", lambda *_: (torch.tensor([next(steps)]), torch.zeros(1)))
    [got] = engine.generate(PROMPTS[:1], SamplingParams(max_new_tokens=40), seeds=[0])
    assert (got.text, got.finish, len(got.ids)) == ("sure", "stop", len("sure\n\nHuman:"))


def test_answers_come_in_the_order_of_the_prompts_however_they_are_batched(policy: Policy) -> None:
    renderer = Renderer(policy.tokenizer, template="chat", max_length=64)
    params, seeds = SamplingParams(max_new_tokens=10), [7, 8, 9, 10]
    whole = Engine(policy, renderer, max_batch=8).generate(PROMPTS, params, seeds=seeds)
    parts = Engine(policy, renderer, max_batch=3).generate(PROMPTS, params, seeds=seeds)
    assert [g.prompt for g in whole] == PROMPTS
    assert [g.ids for g in whole] == [g.ids for g in parts]


def test_the_same_seed_gives_the_same_answer_and_another_one_another(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=10)
    first, again, other = (engine.generate(PROMPTS, params, seeds=range(s, s + 4)) for s in (0, 0, 50))
    assert [g.ids for g in first] == [g.ids for g in again]
    assert [g.ids for g in first] != [g.ids for g in other]


def test_a_response_longer_than_the_row_is_refused_before_anything_runs(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"max_new_tokens \(64\) leaves no room"):
        engine.generate(PROMPTS, SamplingParams(max_new_tokens=64), seeds=range(4))


def test_a_row_beyond_the_models_positions_is_refused_with_the_number(policy: Policy) -> None:
    short = load_policy(tiny.folder("gpt2"), trainable=False)
    engine = Engine(short, Renderer(short.tokenizer, template="chat", max_length=500), max_batch=2)
    long = [Prompt.ask("could you help me? " * 40)]
    with pytest.raises(UsageError, match="128 positions") as caught:
        engine.generate(long, SamplingParams(max_new_tokens=20), seeds=[0])
    assert "max_length to 128" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("mamba2", {"state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1}),
        ("lfm2", {**tiny.SHAPE["llama"], "layer_types": ["conv", "full_attention"]}),
        ("llama4_text", {**tiny.SHAPE["llama"], "intermediate_size_mlp": 64, "head_dim": 8, "num_local_experts": 2}),
    ],
)
def test_a_model_with_another_kind_of_memory_is_refused_by_name(
    kind: str, shape: dict[str, Any], tmp_path: Path
) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, **shape}
    words = tiny.tokenizer()
    config = transformers.AutoConfig.for_model(kind, **shape, vocab_size=len(words))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    policy = load_policy(tmp_path, trainable=False)
    with pytest.raises(ModelError, match=f"{kind} cannot be sampled from"):
        Engine(policy, Renderer(policy.tokenizer, template="chat", max_length=64), max_batch=2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_told_and_not_drawn_from(temperature: float) -> None:
    policy = load_policy(tiny.folder("llama"), trainable=False)
    with torch.no_grad():
        next(iter(policy.model.parameters())).fill_(torch.nan)
    engine = Engine(policy, Renderer(policy.tokenizer, template="chat", max_length=64), max_batch=8)
    with pytest.raises(TrainingError, match="not finite"):
        engine.generate(PROMPTS, SamplingParams(max_new_tokens=4, temperature=temperature), seeds=range(len(PROMPTS)))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_in_bf16_sampler_and_trainer_agree_to_its_rounding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch rounds differently: about a hundredth of a nat a token where fp32 differs by a millionth."""
    for module in ("precision", "backbone"):
        monkeypatch.setattr(f"assay.models.{module}.compute_dtype", lambda *_: torch.bfloat16)
    policy = load_policy(tiny.folder(kind), trainable=False)
    assert policy.backbone.computes_in == next(policy.model.parameters()).dtype == torch.bfloat16
    engine = Engine(policy, Renderer(policy.tokenizer, template="chat", max_length=64), max_batch=3)
    drawn = engine.generate(PROMPTS, SamplingParams(max_new_tokens=12), seeds=range(len(PROMPTS)))
    with torch.no_grad():
        scored = policy.logprobs(collate([one.row for one in drawn], policy.pad_id))
    told = torch.tensor([logprob for one in drawn for logprob in one.logprobs])
    apart = (scored.logprobs_BR[scored.mask_BR] - told).abs()
    assert 1e-5 < apart.mean() < 0.03
    assert apart.max() < 0.3


def test_a_stop_string_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="stop"):
        SamplingParams(stop=("",))


def test_no_prompts_give_no_answers(engine: Engine) -> None:
    assert engine.generate([], SamplingParams(max_new_tokens=8), seeds=[]) == []


def test_sampling_leaves_the_model_in_the_mode_it_was_in(engine: Engine) -> None:
    engine.policy.train()
    engine.generate(PROMPTS[:1], SamplingParams(max_new_tokens=2), seeds=[0])
    assert engine.policy.model.training
    engine.policy.eval()


class Asked(TorchDispatchMode):
    """Counts what a GPU would be waited for: a number asked of a tensor, and a tensor made of Python's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "is_nonzero", "nonzero", "lift_fresh")
        self.times += func.overloadpacket.__name__ in waits
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_its_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With transformers' own attention, as on a GPU; the tokens themselves come by `tolist`."""
    policy = load_policy(tiny.folder("llama"), trainable=False)
    policy.model.set_attn_implementation("sdpa")
    engine = Engine(policy, Renderer(policy.tokenizer, template="chat", max_length=64), max_batch=8)
    steps: list[int] = []
    step = engine._step

    def watched(*args: Any) -> None:
        with Asked() as asked:
            step(*args)
        steps.append(asked.times)

    monkeypatch.setattr(engine, "_step", watched)
    engine.generate(PROMPTS, SamplingParams(max_new_tokens=8), seeds=range(4))
    assert len(steps) >= 4
    assert steps == [0] * len(steps)


def test_a_prompt_of_several_answers_is_read_once_by_a_model_that_reads_no_trees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GPT-Neo with prompts beyond its window of eight tokens."""
    policy = load_policy(tiny.folder("gpt_neo"), trainable=False)
    engine = Engine(policy, Renderer(policy.tokenizer, template="chat", max_length=64), max_batch=8)
    read: list[int] = []
    forward = policy.backbone.forward

    def counted(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        if input_ids.shape[1] > policy.backbone.window:
            read.append(input_ids.shape[0])
        return forward(input_ids, **options)

    monkeypatch.setattr(policy.backbone, "forward", counted)
    params = SamplingParams(max_new_tokens=6)
    prompts = [prompt for prompt in PROMPTS[:2] for _ in range(3)]
    together = engine.generate(prompts, params, seeds=range(6))
    assert read == [2]
    alone = [engine.generate([prompt], params, seeds=[seed])[0] for seed, prompt in enumerate(prompts)]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
