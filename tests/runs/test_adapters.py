"""An adapter alone as the result of a run, and as a model to measure, report on and train from."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file

from gentletune import Recipe, train
from gentletune.core.cache import Shared
from gentletune.core.errors import UserError
from gentletune.lm.loaded import Loaded, load_model
from gentletune.lm.model_files import model_hash, resolve_model
from gentletune.reporting import report
from gentletune.sweeps.plan import Trial
from gentletune.sweeps.store import Job, drop_weights
from tests.helpers import edit_json, run_cli, tiny_recipe

LORA: dict[str, Any] = {"method": "lora(r=2)", "max_steps": 3, "tasks": ("arithmetic",), "precision": "fp32"}


@pytest.fixture(scope="module")
def runs(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training saved both ways, in `merged` and `adapter`."""
    folder = tmp_path_factory.mktemp("runs")
    for save in ("merged", "adapter"):
        train(tiny_recipe(tiny_dir, folder / save, save=save, **LORA))
    return folder


@pytest.fixture
def adapter(runs: Path, tmp_path: Path) -> Path:
    """A copy of the adapter, to be spoilt."""
    return Path(shutil.copytree(runs / "adapter" / "model", tmp_path / "adapter"))


def test_an_adapter_and_its_tokenizer_and_card_are_all_that_is_saved(runs: Path, tiny_dir: Path) -> None:
    saved = {path.name for path in (runs / "adapter" / "model").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= saved
    assert not {"model.safetensors", "config.json"} & saved
    card = (runs / "adapter" / "model" / "README.md").read_text()
    assert "library_name: peft" in card
    assert f"its base model is `{tiny_dir}`" in card
    assert "bits_per_token" in card  # its scores
    assert not (runs / "adapter" / "checkpoints").exists()


def test_both_ways_have_the_same_scores(runs: Path) -> None:
    found = [json.loads((runs / save / "record.json").read_text()) for save in ("merged", "adapter")]
    assert found[0]["status"] == found[1]["status"] == "complete"
    assert found[0]["scores"]
    assert found[0]["scores"] == found[1]["scores"]


def test_the_loaded_adapter_is_the_merged_model(runs: Path) -> None:
    merged, found = (load_model(runs / save / "model") for save in ("merged", "adapter"))
    other = dict(found.named_parameters())
    assert all(torch.equal(value, other[name]) for name, value in merged.named_parameters())
    assert len(other) == len(dict(merged.named_parameters()))


def test_peft_itself_reads_it(runs: Path) -> None:
    theirs = AutoPeftModelForCausalLM.from_pretrained(runs / "adapter" / "model").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        ours = load_model(runs / "adapter" / "model")(ids).logits
        assert torch.allclose(theirs(ids).logits, ours, atol=1e-5)


def test_it_is_evaluated_beside_its_base(
    runs: Path, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--tasks", "arithmetic", "--general-rows", "3", "--task-tokens", "6", "--precision", "fp32"]
    found = []
    for save in ("merged", "adapter"):
        answer = tmp_path / f"{save}.json"
        model = str(runs / save / "model")
        call = ["evaluate", "--model", model, "--base", str(tiny_dir), *flags, "--json", str(answer)]
        assert run_cli(monkeypatch, *call) == 0
        found.append(json.loads(answer.read_text()))
    assert found[0]["scores"] == found[1]["scores"]
    assert found[0]["hashes"]["model"] != found[1]["hashes"]["model"]
    assert found[0]["hashes"]["base model"] == found[1]["hashes"]["base model"]
    assert run_cli(monkeypatch, "evaluate", "--model", model, *flags) == 0  # by itself


def test_a_report_is_made_of_it(runs: Path, tmp_path: Path) -> None:
    from gentletune.core.records import load_records

    made = report(load_records([runs / "adapter"]), tmp_path / "report")
    assert made.html.exists()


def test_what_follows_a_training_finds_the_adapter(runs: Path, tiny_dir: Path, tmp_path: Path) -> None:
    """The same command again has nothing to do, with new tasks it measures, and another way of saving is refused."""
    run = Path(shutil.copytree(runs / "adapter", tmp_path / "run"))
    before = (run / "model" / "adapter_model.safetensors").read_bytes()
    recipe = tiny_recipe(tiny_dir, run, save="adapter", **LORA)
    first = train(recipe)
    again = train(recipe.override({"tasks": ("arithmetic", "instructions")}))
    assert len(again.scores) > len(first.scores)
    assert (run / "model" / "adapter_model.safetensors").read_bytes() == before
    with pytest.raises(UserError, match=r"holds a run of another recipe \(different: save\)"):
        train(recipe.override({"save": "merged"}))


def test_an_average_is_made_of_an_adapter(runs: Path, tiny_dir: Path, tmp_path: Path) -> None:
    """A trial that only merges takes the weights of one that saved its adapter."""
    made = []
    for save in ("merged", "adapter"):
        recipe = tiny_recipe(tiny_dir, tmp_path / save, **(LORA | {"method": "lora(r=2)+wise_ft", "evaluate": False}))
        assert train(recipe, reuse=runs / save).status == "complete"
        made.append(load_file(tmp_path / save / "model" / "model.safetensors"))
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())


def test_an_adapter_goes_on_from_an_adapter(runs: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(runs / "adapter" / "model", tmp_path / "run", save="adapter", evaluate=False, **LORA)
    assert train(recipe).status == "complete"
    config = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(runs / "adapter" / "model")
    load_model(tmp_path / "run" / "model")


def test_weights_that_are_not_kept_go(runs: Path, tiny_dir: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "adapter", tmp_path / "study" / "run"))
    recipe: Recipe = tiny_recipe(tiny_dir, run, save="adapter", **LORA)
    drop_weights(Job(Trial("run", recipe), tmp_path / "study", begun=0.0))
    assert not (run / "model").exists()
    assert (run / "record.json").exists()


# --- hash and place


def test_the_hash_covers_the_adapter_and_its_base_and_no_place(
    adapter: Path, runs: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    whole = model_hash(runs / "adapter" / "model")
    moved = Path(shutil.copytree(tiny_dir, tmp_path / "moved"))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(moved))
    assert model_hash(adapter) == whole
    edit_json(adapter / "adapter_config.json", lora_alpha=64)
    scaled = model_hash(adapter)
    edit_json(adapter / "adapter_config.json", lora_alpha=32)
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert len({whole, scaled, model_hash(adapter)}) == 3


def test_an_adapter_without_a_tokenizer_has_its_bases(adapter: Path, tiny_dir: Path) -> None:
    for path in [*adapter.glob("tokenizer*"), *adapter.glob("*.jinja")]:
        path.unlink()
    found, base = Loaded(str(adapter)), Loaded(str(tiny_dir), shared=Shared())
    assert found.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert found.config.num_hidden_layers == 2


# --- what is wrong with it


def refusal(adapter: Path) -> str:
    with pytest.raises(UserError) as caught:
        Loaded(str(adapter)).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": "/no/model"}, "which its adapter_config.json names: no such model directory"),
        ({"base_model_name_or_path": None}, "names no base model; set its base_model_name_or_path"),
        ({"r": 3}, "size mismatch"),
        ({"target_modules": ["nothing"]}, "cannot add the adapter in"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(changes: dict[str, Any], message: str, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", **changes)
    said = refusal(adapter)
    assert str(adapter) in said
    assert message in said


def test_an_adapter_that_is_its_own_base_is_refused(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))
    assert "names no base model" in refusal(adapter)


def test_an_adapter_of_another_model_is_refused(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name.replace("layers.1", "layers.7"): value for name, value in weights.items()},
              adapter / "adapter_model.safetensors")  # fmt: skip
    assert "missing adapter keys" in refusal(adapter)


def test_half_an_adapter_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors; gentletune reads no pickled weights"):
        resolve_model(str(adapter))


def test_a_merged_run_has_no_adapter_to_take(runs: Path, tiny_dir: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_dir, tmp_path / "run", save="adapter", evaluate=False, **LORA)
    with pytest.raises(UserError, match="saved whole weights, so save: adapter has nothing to take"):
        train(recipe, reuse=runs / "merged")


# --- several processes


@pytest.mark.slow
def test_ranks_leave_their_adapter(tiny_dir: Path, tmp_path: Path) -> None:
    quantization = "4bit" if importlib.util.find_spec("bitsandbytes") else None  # an extra
    how = LORA | {"batch_size": 1, "processes": 2, "evaluate": False, "probe_every": 0, "quantization": quantization}
    recipe = tiny_recipe(tiny_dir, tmp_path / "alone", save="adapter", **how)
    assert train(recipe).status == "complete"
    train(recipe.override({"save": "merged", "output": str(tmp_path / "merged")}))
    merged = load_model(tmp_path / "merged" / "model").state_dict()
    found = load_model(tmp_path / "alone" / "model").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in merged.items())
    config = json.loads((tmp_path / "alone" / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_dir)
