"""The races: what counts as work, how ratios are taken, and that responses end where they are told to."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import scaling
from bench.peers import side
from bench.race import page, where, work
from bench.race.context import Stopwatch
from bench.race.races import RACES
from bench.race.sides import ENVIRONMENTS
from transformers import GenerationConfig

from assay.data.render import Renderer
from assay.models.roles import load_policy
from assay.models.scratch import train_tokenizer
from assay.rollout.engine import Engine
from assay.types import Prompt

RACE = {race.name: race for race in RACES}
ROWS = [
    {"prompt_ids": [1] * 10, "chosen_ids": [1] * 3, "rejected_ids": [1] * 5, "budget": 8},
    {"prompt_ids": [1] * 20, "chosen_ids": [1] * 4, "rejected_ids": [1] * 2, "budget": 64},
]


def run(
    race: str, ours: float, peer: float, *, shape: str = "gpt2", memory: tuple[float, float] = (1, 4)
) -> dict[str, Any]:
    sides = {
        name: {"seconds": seconds, "memory_mb": held}
        for name, seconds, held in zip(("ours", "peer"), (ours, peer), memory, strict=True)
    }
    machine = {"peak_flops": 1e9, "bandwidth": 1e9, "decoding": {"flops": 1e9, "bytes": 1.5e9}}
    return {"commit": "1" * 12, "race": race, "shape": shape, "tokens": 600, "flops": 3e9, **machine, **sides}


@pytest.mark.parametrize(
    ("race", "tokens"),
    [
        ("reward", 10 + 3 + 5 + 20 + 4 + 2),
        ("dpo", 2 * (10 + 3 + 5 + 20 + 4 + 2)),  # two epochs
        ("sft", 10 + 3 + 20 + 4),
        ("generate", 8 + 64),
        ("grpo", 2 * 8 * 64),  # two prompts, eight responses each
        ("ppo", 2 * 64),
    ],
)
def test_useful_tokens_have_neither_pads_nor_repeats(race: str, tokens: int) -> None:
    assert RACE[race].useful_tokens(ROWS) == tokens


def test_operations_by_hand() -> None:
    weights = {"trunk": 100, "head": 1000}
    assert RACE["reward"].useful_flops(ROWS, weights) == 6 * 44 * 100
    assert RACE["reward_lora"].useful_flops(ROWS, weights) == 4 * 44 * 100
    assert RACE["sft"].useful_flops(ROWS, weights) == 6 * (37 * 100 + 7 * 1000)  # the head at 7 labels
    # DPO: the reference once (2), two epochs (4 each); prompts once, the head at 14 labels.
    assert RACE["dpo"].useful_flops(ROWS, weights) == 10 * (44 * 100 + 14 * 1000)
    assert RACE["generate"].useful_flops(ROWS, weights) == 2 * (30 + 72) * 100 + 2 * 72 * 1000
    # PPO: sampled, scored, compared, valued (2 each); four epochs of policy and critic (4 each).
    assert RACE["ppo"].useful_flops(ROWS, weights) == (8 + 32) * (30 + 128) * 100 + (4 + 16) * 128 * 1000
    # GRPO: sampled, scored, compared; one epoch of the policy; a prompt once for eight answers.
    assert RACE["grpo"].useful_flops(ROWS, weights) == (6 + 4) * (30 + 1024) * 100 + (4 + 4) * 1024 * 1000


def test_what_steps_of_a_token_read_by_hand() -> None:
    """Prompts of 10 and 20 tokens, answers of 8 and 64: the first token of each comes with its prompt."""
    weights = {"trunk": 100, "head": 1000, "cached": 7}
    assert RACE["sft"].decoding(ROWS, weights) == {"flops": 0, "bytes": 0}
    seen = sum(10 + t for t in range(1, 8)) + sum(20 + t for t in range(1, 64))
    one = replace(RACE["generate"], batch=2).decoding(ROWS, weights)
    assert one == {"flops": 2 * (7 + 63) * 1100, "bytes": 4 * (63 * 1100 + 7 * seen)}
    # Eight answers to a prompt may read its keys and values together, and each reads its own.
    seen = 63 * (10 + 20) + 2 * 8 * sum(range(1, 64))
    group = replace(RACE["grpo"], batch=16).decoding(ROWS, weights)
    assert group == {"flops": 2 * 16 * 63 * 1100, "bytes": 4 * (63 * 1100 + 7 * seen)}


def test_the_floor_is_the_slower_of_what_a_step_does_and_reads_and_all_else_at_the_peak() -> None:
    assert page.floor(run("ppo", 4, 8)) == 2 + 1.5
    assert page.floor({**run("ppo", 4, 8), "bandwidth": 3e9}) == 2 + 1
    assert page.at_the_floor(run("ppo", 4, 8)) == 8 / 3.5


def test_matrices_are_those_a_token_is_multiplied_with() -> None:
    tokenizer = train_tokenizer(["a"], 300)
    shape = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 300,
    }
    block = 4 * 8 * 8 + 3 * 8 * 12
    assert work.matrices(work.new_model("llama", tokenizer, **shape)) == {
        "cached": 2 * 2 * 8,
        "trunk": 2 * block,
        "head": 300 * 8,
    }


def test_ratios_are_medians_of_ratios() -> None:
    runs = [run("dpo", 1, 3), run("dpo", 2, 10), run("dpo", 4, 16)]  # 3, 5 and 4; of the medians it would be 5
    assert page.spread(runs, page.speed_ratio) == "4.00 (3.00–5.00)"
    assert page.rate(runs[1], "ours") == 300
    assert page.rate(runs[1], "peer") == 60
    assert page.share_of_peak(runs[2], "ours") == 0.75
    assert page.memory_ratio(runs[0]) == 0.25
    assert page.spread(runs[:1], page.speed_ratio) == "3.00"


def test_a_requirement_is_reached_or_not() -> None:
    assert page.verdict(4.0, 4.0) == "≥ 4: yes"
    assert page.verdict(3.99, 4.0) == "≥ 4: **no**"
    assert page.verdict(0.36, 0.35, at_most=True) == "≤ 0.35: **no**"
    assert page.verdict(1.0, None) == "–"


def test_the_page_holds_every_race_that_was_run_under_its_shape() -> None:
    facts = dict.fromkeys(("command", "commit", "date", "cpu", "cores", "memory_gb", "load_at_start", "python"), "")
    found = {**facts, "torch": "", "transformers": "", "rounds": 1}
    text = page.page({**found, "runs": [run("ppo", 1, 2.9), run("ppo", 1, 7, shape="llama"), run("sft", 1, 2)]})
    gpt2, llama = text.split("## GPT-2, 124M")[1].split("## Llama, 4 layers of 256")
    assert "| 2.90 | ≥ 3: **no** |" in gpt2
    assert "PPO, LoRA, 4 inner epochs: 1.0 s, of which" in gpt2
    assert "SFT" not in gpt2.split("Bounds that were missed")[1].split("##")[0]
    assert "Bounds that were missed" not in llama
    assert "≤ 0.35: yes" in gpt2  # the memory of the first side is a quarter
    assert "| 2.00 | ≥ 1.7: yes | 0.6 | 300% / 150% |" in gpt2
    assert "| 7.00 | ≥ 6: yes |" in llama.split("##")[0]
    assert "## GPT-Neo" not in text
    assert "GRPO, LoRA" not in text.split("## How")[0]


def test_both_sides_can_run_every_race() -> None:
    for race in RACES:
        assert race.script in ENVIRONMENTS
        assert race.batch % race.group == 0
        assert race.name in (Path(work.common.ROOT) / f"bench/peers/{race.script}.py").read_text()
        assert f'"{race.name}"' in (Path(work.common.ROOT) / "bench/race/ours.py").read_text()
        assert race.steps * race.prompts <= work.ROWS


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "products"),
        ("aten::baddbmm", "attention"),
        ("BlockAttentionBackward", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::copy_", "moving"),
        ("aten::_log_softmax", "softmax of the head"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::mul", "elementwise"),
    ],
)
def test_every_operation_has_its_kind(operation: str, kind: str) -> None:
    assert where.kind_of(operation) == kind


def test_what_no_operation_accounts_for_is_outside() -> None:
    assert where.shares_of({"products": 6.0, "elementwise": 1.0}, 10.0) == {
        "products": 0.6,
        "elementwise": 0.1,
        "outside": pytest.approx(0.3),
    }


@pytest.mark.parametrize(
    "script", sorted((work.common.ROOT / "bench" / "peers").glob("*.py")), ids=lambda path: path.stem
)
def test_peers_know_nothing_of_assay(script: Path) -> None:
    nodes = list(ast.walk(ast.parse(script.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not any(name.partition(".")[0] == "assay" for name in names)
    assert {name for name in names if name.startswith("bench")} <= {"bench.peers"}


def test_a_side_warms_up_and_reports_the_second_time(tmp_path: Path) -> None:
    rows, job, out = tmp_path / "rows.jsonl", tmp_path / "job.json", tmp_path / "out.json"
    rows.write_text("".join(f'{{"n": {n}}}\n' for n in range(9)))
    told = {"race": "count", "rows": str(rows), "out": str(out), "steps": 2, "prompts": 3, "threads": 1}
    job.write_text(json.dumps(told))
    seen: list[list[int]] = []

    def count(_: side.Job, rows: side.Rows) -> dict[str, Any]:
        seen.append([row["n"] for row in rows])
        return {"seconds": float(len(seen)), "held": len(torch.ones(100_000_000))}  # 400 MB

    side.run({"count": count}, str(job))
    measured = json.loads(out.read_text())
    assert seen == [[0, 1, 2], [0, 1, 2, 3, 4, 5]]
    assert measured["seconds"] == 2.0
    assert measured["memory_mb"] >= 380


def test_the_stopwatch_counts_steps_and_what_comes_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 13.0, 20.0, 21.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    ctx = Stopwatch(tmp_path / "new")
    assert ctx.timed(lambda a, b: a - b)(5, b=2) == 3
    with ctx.progress(1, "steps"):
        pass
    assert ctx.seconds == 4.5
    assert ctx.folder.is_dir()


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counting")
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog"], 400)
    shape = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = work.new_model("llama", tokenizer, **shape, vocab_size=500, tie_word_embeddings=False)
    work.count_down(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_every_length_has_a_token(counting: Path) -> None:
    counts = set(work.counts(load_policy(counting, trainable=False).tokenizer).values())
    assert set(range(work.SHORTEST, work.NEW_TOKENS + 1)) <= counts


def test_responses_end_where_their_prompt_says_on_both_sides(counting: Path) -> None:
    policy = load_policy(counting, trainable=False)
    token_of = {count: token for token, count in work.counts(policy.tokenizer).items()}
    lengths = {Prompt.ask("fox"): 8, Prompt.ask("lazy dog"): 23, Prompt.ask("the quick dog"): 64}

    class Given(Renderer):
        def fitted(self, prompt: Prompt, *, reserve: int = 1) -> tuple[list[int], bool]:
            ids, cut = super().fitted(prompt, reserve=reserve)
            return [*ids[:-1], token_of[lengths[prompt]]], cut

    renderer = Given(policy.tokenizer, max_length=200)
    ours = Engine(policy, renderer, max_batch=2).generate(list(lengths), work.SAMPLING, seeds=[0, 1, 2])
    assert [len(response.ids) for response in ours] == [8, 23, 64]
    assert {response.finish for response in ours} == {"stop"}
    assert len({token for response in ours for token in response.ids}) > 30  # it samples: the tokens are many

    eos, pad = policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=64, eos_token_id=eos, pad_token_id=pad)
    for prompt, length in lengths.items():
        ids = torch.tensor([renderer.prompt(prompt)])
        response = policy.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)  # pyright: ignore
        assert response.shape[1] - ids.shape[1] == length
        assert response[0, -1] == eos


def test_exponents_of_a_power_law() -> None:
    square = {size: 0.5 * size**2 for size in (2, 4, 8)}
    assert scaling.exponent(square) == pytest.approx(2)
    assert scaling.last_exponent(square) == pytest.approx(2)
    shared = {1: 11.0, 2: 12.0, 4: 14.0}  # 10 + size
    assert scaling.exponent(shared) < scaling.last_exponent(shared) < 1


def test_the_curve_is_drawn_through_the_production_stage() -> None:
    sizes = scaling.Sizes(prompt=4, response=3, batch=2, group=2, vocabulary=400, width=16)
    assert scaling.step_seconds(sizes) > 0
