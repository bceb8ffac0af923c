"""Recipes: short to write, hard to get wrong, every fault named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay.document import read_yaml
from assay.errors import ConfigError
from assay.pipeline.graph import references
from assay.pipeline.recipe import NamedRecipe, Recipe, load_recipe, shipped
from assay.stages.config import EvaluateConfig, PPOConfig, PretrainConfig, RewardConfig, SFTConfig
from assay.stages.context import StageInputs

RECIPE = """\
# Four stages on the world.
model: embedded
data: {world: frontdesk}
stages:
  - sft: {epochs: 3}
  - reward
  - ppo:
      kl_target: 6.0
  - evaluate:
"""


def load(tmp_path: Path, text: str = RECIPE, *overrides: str, **environment: str) -> NamedRecipe:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return load_recipe(str(file), overrides, environment)


def fault(tmp_path: Path, text: str = RECIPE, *overrides: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text, *overrides, **environment)
    assert error.value.exit_code == 2
    return str(error.value).replace(str(tmp_path), "")


def inputs(named: NamedRecipe) -> dict[str, dict[str, list[str]]]:
    return {n.id: {role: [s.name for s in sources] for role, sources in n.inputs.items()} for n in named.graph}


def test_a_stage_reads_the_latest_suitable_stage_before_it(tmp_path: Path):
    assert inputs(load(tmp_path)) == {
        "sft": {"base": ["embedded"]},
        "reward": {"base": ["sft"]},
        "ppo": {"base": ["sft"], "reward": ["reward"]},
        "evaluate": {"policies": ["sft", "ppo"]},
    }


def test_a_stage_can_name_what_it_reads(tmp_path: Path):
    text = """
model: gpt2
data: {path: pairs.jsonl}
stages:
  - sft: {id: a}
  - sft: {id: b}
  - reward: {id: strict, base: a}
  - reward: {id: other, base: models/encoder, part: [2, 2]}
  - ppo: {base: a, reward: strict, judge: other}
  - ppo: {id: ppo2}
  - evaluate: {policies: [b, ppo], judge: other}
"""
    assert inputs(load(tmp_path, text)) == {
        "a": {"base": ["gpt2"]},
        "b": {"base": ["a"]},
        "strict": {"base": ["a"]},
        "other": {"base": ["models/encoder"]},
        "ppo": {"base": ["a"], "reward": ["strict"], "judge": ["other"]},
        "ppo2": {"base": ["b"], "reward": ["other"]},
        "evaluate": {"policies": ["b", "ppo"], "judge": ["other"]},
    }


def test_default_is_overridden_by_file_then_environment_then_command_line(tmp_path: Path):
    def epochs(*overrides: str, **environment: str) -> int:
        stage = load(tmp_path, RECIPE, *overrides, **environment).recipe.stages[0]
        assert isinstance(stage, SFTConfig)
        return stage.epochs

    assert load(tmp_path, RECIPE.replace("epochs: 3", "")).recipe.stages[0] == SFTConfig.model_validate({})
    assert epochs() == 3
    assert epochs(ASSAY_SFT__EPOCHS="4") == 4
    assert epochs("sft.epochs=5", ASSAY_SFT__EPOCHS="4") == 5


def test_overrides_address_stages_by_id_and_make_the_maps_they_need(tmp_path: Path):
    text = RECIPE.replace("- reward", "- reward: {id: rm}")
    recipe = load(
        tmp_path,
        text,
        "rm.optim.learning_rate=1e-5",
        "seed=7",
        "model.template=plain",
        "runs_dir=x",
        "data.documents=5",
    ).recipe
    assert isinstance(recipe.stages[1], RewardConfig)
    assert recipe.stages[1].optim.learning_rate == 1e-5
    assert (recipe.seed, recipe.model.path, recipe.model.template, recipe.runs_dir) == (7, "embedded", "plain", "x")
    assert load(tmp_path, text, "model=org/name").recipe.model.path == "org/name"


def test_a_partial_map_keeps_the_stage_s_own_defaults(tmp_path: Path):
    ppo = load(tmp_path, RECIPE, "ppo.optim.learning_rate=1e-5").recipe.stages[2]
    assert isinstance(ppo, PPOConfig)
    assert ppo.optim == PPOConfig.model_validate({}).optim.model_copy(update={"learning_rate": 1e-5})
    assert ppo.optim.eps == 1e-5  # PPO's own default, not AdamW's


def test_a_learning_rate_of_1e_5_is_a_number_quoted_or_not(tmp_path: Path):
    for text in ("1e-5", '"1e-5"'):
        stage = load(tmp_path, RECIPE.replace("epochs: 3", f"optim: {{learning_rate: {text}}}")).recipe.stages[0]
        assert isinstance(stage, SFTConfig)
        assert stage.optim.learning_rate == 1e-5


def test_the_resolved_recipe_is_a_recipe_that_gives_itself(tmp_path: Path):
    first = load(tmp_path, RECIPE, "ppo.kl_stop=null", "track=[tensorboard]", "sft.id=start")
    again = tmp_path / "mine-0123abcd" / "recipe.yaml"
    again.parent.mkdir()
    again.write_text(first.recipe.yaml())
    second = load_recipe(str(again), (), {})
    assert second.recipe == first.recipe
    assert second.run_dir == first.run_dir  # the name comes back from the run's folder
    assert load_recipe(str(again.parent), (), {}).recipe == first.recipe


def test_the_run_folder_depends_on_what_determines_the_result_only(tmp_path: Path):
    def folder(*overrides: str) -> str:
        return load(tmp_path, RECIPE, *overrides).run_dir.name

    assert folder().startswith("mine-")
    assert folder("runs_dir=elsewhere", "track=[wandb]", "device=cpu") == folder()
    assert len({folder(), folder("seed=1"), folder("ppo.episodes=256"), folder("data.documents=5")}) == 4


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("epochs: 3", "epoch: 3", ['/mine.yaml:5: sft: unknown key "epoch"', 'did you mean "epochs"?']),
        ("epochs: 3", "lr: 1e-5", ['/mine.yaml:5: sft: unknown key "lr"', 'did you mean "optim.learning_rate"?']),
        ("epochs: 3", "epochs: many", ['/mine.yaml:5: sft.epochs: must be a whole number, not "many"']),
        ("epochs: 3", "epochs: 1.5", ["/mine.yaml:5: sft.epochs: must be a whole number, not 1.5"]),
        ("epochs: 3", "epochs: 0", ["/mine.yaml:5: sft.epochs: must be greater than 0, not 0"]),
        ("epochs: 3", "epochs: [1]", ["sft.epochs: must be a whole number, not a list of 1"]),
        ("epochs: 3", "optim: fast", ['sft.optim: must be a map of settings, not "fast"']),
        ("epochs: 3", "optim: {learning_rate: .nan}", ["sft.optim.learning_rate: must be a number, not nan"]),
        ("epochs: 3", "optim: {schedule: cosin}", ["must be one of constant, linear, cosine", '"cosine"?']),
        ("kl_target: 6.0", "kl_target: -1", ["/mine.yaml:8: ppo.kl_target: must be greater than 0, not -1"]),
        (
            "kl_target: 6.0",
            "kl_target: 1\n      clip: 0.2\n      clip: 0.3",
            ["/mine.yaml:10", '"clip" is given twice'],
        ),
        ("kl_target: 6.0", "reward: rewrd", ['ppo.reward: there is no stage "rewrd" above', 'did you mean "reward"?']),
        ("epochs: 3", "base: distilgpt2", ['no stage "distilgpt2" above', "a model is written ./FOLDER or OWNER/NAME"]),
        ("kl_target: 6.0", "base: gpt2", ['no stage "gpt2" above', "known: sft; a model is written", "OWNER/NAME"]),
        ("kl_target: 6.0", "reward: sft", ['"sft" is a stage of kind sft, not reward']),
        ("kl_target: 6.0", "base: evaluate", ['the stage "evaluate" comes later']),
        ("- reward\n", "- rewrd\n", ['/mine.yaml:6: stage 2: unknown stage "rewrd"', 'did you mean "reward"?']),
        ("- reward\n", "- sft\n", ['/mine.yaml:6: sft.id: two stages are called "sft"']),
        ("- reward\n", "- reward: {id: seed}\n", ['seed.id: "seed" cannot name a stage']),
        ("- reward\n", "- reward: {id: ../x}\n", ['"../x" cannot name a stage']),
        ("- reward\n", "- reward: 3\n", ["stage 2", "the settings of reward must be a map"]),
        ("- reward\n", "- reward:\n    epochs: 2\n", ["stage 2", "not the keys reward, epochs; are they indented?"]),
        ("  - reward\n", "", ["/mine.yaml:6: ppo.reward: needs a reward stage before it"]),
        ("world: frontdesk", "world: backdesk", ['/mine.yaml:3: data.world: must be one of frontdesk, not "backdesk"']),
        ("world: frontdesk", "wrld: frontdesk", ['/mine.yaml:3: data: unknown key "wrld"', 'did you mean "world"?']),
        ("world: frontdesk", "world: frontdesk, path: x", ["data: has both `world` and `path`"]),
        ("data: {world: frontdesk}", "", ["data: is missing", "add `data: …`"]),
        ("model: embedded", "model: {pth: x}", ['model: unknown key "pth"', 'did you mean "path"?']),
        ("model: embedded", 'runs_dir: ""', ["/mine.yaml:2: runs_dir: must not be empty"]),
        ("model: embedded", "seed: -1", ["/mine.yaml:2: seed: must be at least 0, not -1"]),
        ("model: embedded", "device: tpu", ['/mine.yaml:2: device: must be auto, cpu, cuda or cuda:1, not "tpu"']),
        (
            "model: embedded",
            "device: mps",
            ["/mine.yaml:2: device: mps has no float64, in which tokens are drawn; set device to cpu"],
        ),
    ],
)
def test_a_fault_says_what_where_and_how_to_fix_it(tmp_path: Path, old: str, new: str, wanted: list[str]):
    message = fault(tmp_path, RECIPE.replace(old, new, 1))
    assert all(words in message for words in wanted), message


def test_all_faults_are_told_at_once_in_the_order_of_the_file(tmp_path: Path):
    text = RECIPE.replace("epochs: 3", "epoch: 3").replace("kl_target: 6.0", "episodes: x") + "sed: 3\n"
    lines = fault(tmp_path, text, "ppo.clip=big", "pppo.clip=1").splitlines()
    assert lines[0] == "5 faults in the configuration"
    assert [line.split()[0] for line in lines[1:4]] == ["command", "command", "/mine.yaml:5:"]
    assert [line.split()[0] for line in lines[4:6]] == ["/mine.yaml:8:", "/mine.yaml:10:"]


def test_a_wrong_override_is_told_as_what_the_user_typed(tmp_path: Path):
    assert 'command line: there is no key or stage "pppo"' in fault(tmp_path, RECIPE, "pppo.clip=1")
    assert 'command line: ppo.clip: must be a number, not "x"' in fault(tmp_path, RECIPE, "ppo.clip=x")
    assert "command line: ppo is a stage" in fault(tmp_path, RECIPE, "ppo=1")
    assert "ASSAY_PPO__CLIP: ppo.clip: must be a number" in fault(tmp_path, RECIPE, ASSAY_PPO__CLIP="x")


def test_other_environment_variables_are_left_alone(tmp_path: Path):
    assert load(tmp_path, RECIPE, ASSAY_API_KEY="x", PATH="y", ASSAY_PPO="z", ASSAY_SEED="3").recipe.seed == 3


def test_a_recipe_that_is_not_there_is_one_error(tmp_path: Path):
    for wanted in ("sandbx", str(tmp_path / "none.yaml"), str(tmp_path)):
        with pytest.raises(ConfigError, match="there is no recipe"):
            load_recipe(wanted, (), {})
    with pytest.raises(ConfigError, match=r'did you mean "sandbox"\?'):
        load_recipe("sandbx", (), {})


def test_every_shipped_recipe_is_valid_and_the_default_is_among_them():
    assert "sandbox" in shipped()
    for name, path in shipped().items():
        assert load_recipe(str(path), (), {}).name == name
    assert load_recipe(None, (), {}).name == "sandbox"


def test_a_shipped_recipe_is_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own.yaml").write_text(RECIPE)
    assert load_recipe("own", (), {}).name == "own"
    assert load_recipe("sandbox", (), {}).name == "sandbox"


def test_every_reference_of_a_stage_has_a_place_among_its_inputs():
    fields = StageInputs.__dataclass_fields__
    for config in (PretrainConfig, SFTConfig, RewardConfig, PPOConfig, EvaluateConfig):
        assert set(references(config)) <= {*fields, "judge"}


def test_a_recipe_cannot_be_changed_after_it_was_checked():
    recipe = Recipe.model_validate(read_yaml(RECIPE, "x").data)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3
