"""A finished model on the hub, as GGUF, in shards: each once, each mistake in one line, and the run stays complete."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gentletune import Recipe, UserError, sweep, train
from gentletune.core.records import read_record
from gentletune.lm.loaded import load_model
from tests.cli.test_cli import run as command
from tests.helpers import tiny_recipe

CONVERTER = """
import json, pathlib, sys
model, *options = sys.argv[1:]
given = dict(zip(options[::2], options[1::2]))
assert (pathlib.Path(model) / "model.safetensors").exists()
pathlib.Path(given["--outfile"]).write_text("GGUF " + given["--outtype"])
"""


class Hub:
    """Stands for the hub's API, and keeps what it is asked."""

    calls: list[tuple[str, Any]]
    refuses: str = ""

    def create_repo(self, repository: str, **how: Any) -> None:
        if self.refuses:
            raise ConnectionError(f"{self.refuses}\nand more of it")
        type(self).calls.append(("create", (repository, how["private"])))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        type(self).calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.calls, Hub.refuses = [], ""
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    return Hub


def short(tiny_dir: Path, run: Path, **changes: Any) -> Recipe:
    return tiny_recipe(tiny_dir, run, evaluate=False, probe_every=0, max_steps=1, warmup=0.0, **changes)


def test_a_run_is_uploaded_once_and_private(
    hub: type[Hub], tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = short(tiny_dir, tmp_path / "run", push_to_hub="me/mine")
    hub.refuses = "no route to the hub"
    with pytest.raises(
        UserError, match=r"me/mine was not uploaded \(ConnectionError: no route to the hub\); the model"
    ):
        train(recipe)
    record = read_record(tmp_path / "run")
    assert record is not None
    assert record.status == "complete"
    hub.refuses = ""
    assert train(recipe) == train(recipe) == record
    assert hub.calls[0] == ("create", ("me/mine", True))
    ((where, files),) = hub.calls[1:]
    assert where == "me/mine"
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= set(files)
    assert command(monkeypatch, "export", "hub", str(tmp_path / "run"), "me/public", "--public") == 0
    assert hub.calls[2] == ("create", ("me/public", False))
    assert "uploaded: https://huggingface.co/me/public" in capfd.readouterr().err


def test_without_a_token_or_a_right_name_nothing_is_trained(
    hub: type[Hub], tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="'mine' is no repository of the hub; write owner/name"):
        train(short(tiny_dir, tmp_path / "run", push_to_hub="mine"))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="no token of the hub is at hand; set HF_TOKEN"):
        train(short(tiny_dir, tmp_path / "run", push_to_hub="me/mine"))
    assert not (tmp_path / "run").exists()
    assert hub.calls == []


def test_gguf_by_a_converter(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(CONVERTER)
    recipe = short(tiny_dir, tmp_path / "run", gguf=str(tmp_path))  # llama.cpp's directory does, too
    train(recipe)
    assert (tmp_path / "run" / "model.gguf").read_text() == "GGUF q8_0"
    call = ("export", "gguf", str(tmp_path / "run"), "--converter", str(script))
    target = tmp_path / "other.gguf"
    assert command(monkeypatch, *call, "--type", "bf16", "--output", str(target)) == 0
    assert target.read_text() == "GGUF bf16"
    script.write_text("import sys\nprint('loading')\nsys.exit('KeyError: no such architecture')\n")
    capfd.readouterr()
    for more, line in (
        (("--type", "f16"), "convert_hf_to_gguf.py ended with code 1: KeyError: no such architecture"),
        (("--type", "q4_k_m"), "unknown type of GGUF 'q4_k_m'"),
    ):
        assert command(monkeypatch, *call, *more, "--output", str(tmp_path / "third.gguf")) == 2
        said = capfd.readouterr().err
        assert line in said
        assert said.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if "third" in path.name]
    with pytest.raises(UserError, match=r"give the path to llama\.cpp's convert_hf_to_gguf\.py"):
        train(short(tiny_dir, tmp_path / "none", gguf=str(tmp_path / "nowhere.py")))
    assert not (tmp_path / "none").exists()
    assert command(monkeypatch, "export", "gguf", str(tmp_path / "none"), "--converter", str(script)) == 2
    assert "holds no finished model" in capfd.readouterr().err


def test_weights_in_shards_are_the_same_weights(tiny_dir: Path, tmp_path: Path) -> None:
    train(short(tiny_dir, tmp_path / "one"))
    train(short(tiny_dir, tmp_path / "many", shard_size="60KB"))
    folder = tmp_path / "many" / "model"
    names = set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values())
    assert len(names) > 1
    whole, found = load_file(tmp_path / "one" / "model" / "model.safetensors"), dict[str, torch.Tensor]()
    for name in names:
        found |= load_file(folder / name)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0


def test_a_model_in_fp32_is_written_in_bf16_without_losing_small_updates(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounded to the nearest, a training at a small rate from a base model in bf16 would be mostly undone."""
    plain = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.bfloat16)
    plain.save_pretrained(tmp_path / "base")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / file).write_bytes((tiny_dir / file).read_bytes())
    record = train(short(tmp_path / "base", tmp_path / "run", learning_rate=1e-6, weights="fp32", shard_size="60KB"))
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(
        rf"loaded in bf16, this model loses \d+% of its updates; gentletune export bf16 {tmp_path}/run keeps", told
    )
    assert (
        "lost_in_bf16" not in train(short(tiny_dir, tmp_path / "whole", weights="fp32")).training
    )  # published in fp32
    assert command(monkeypatch, "export", "bf16", str(tmp_path / "run")) == 0
    target = tmp_path / "run" / "model-bf16"
    assert f"written: {target}" in capsys.readouterr().err.replace("\n", "")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype="auto")
    model, loading = AutoModelForCausalLM.from_pretrained(target, dtype="auto", output_loading_info=True)
    assert (whole.dtype, model.dtype, loading["missing_keys"]) == (torch.float32, torch.bfloat16, set())
    nearest = random = all_of_it = 0.0
    for name, start in plain.state_dict().items():
        exact, found = whole.state_dict()[name], model.state_dict()[name]
        change = exact - start.float()
        nearest += float(((exact.bfloat16().float() - start.float()) * change).sum())
        random += float(((found.float() - start.float()) * change).sum())
        all_of_it += float(change.square().sum())
    assert nearest / all_of_it < 0.3
    assert record.training["lost_in_bf16"] == pytest.approx(1 - nearest / all_of_it, abs=1e-3)
    assert random / all_of_it == pytest.approx(1, abs=0.3)
    assert (target / "tokenizer.json").read_bytes() == (tmp_path / "run" / "model" / "tokenizer.json").read_bytes()

    assert command(monkeypatch, "export", "bf16", str(tmp_path / "run")) == 2
    assert "model-bf16 has something in it; give a new directory" in " ".join(capsys.readouterr().err.split())
    capsys.readouterr()
    assert command(monkeypatch, "export", "bf16", str(target), "--output", str(tmp_path / "again")) == 2
    assert "are not in fp32, so there is nothing to round" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "again").exists()


def test_an_adapter_is_merged_with_its_base_in_fp32_before_it_is_rounded(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the base model in fp32 has beyond bf16 is kept on average, too."""
    train(short(tiny_dir, tmp_path / "lora", method="lora(r=2)", save="adapter"))
    monkeypatch.chdir(tmp_path / "lora" / "model")
    assert command(monkeypatch, "export", "bf16", ".") == 0
    target = tmp_path / "lora" / "model-bf16"
    exact = load_model(tmp_path / "lora" / "model")
    found = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    assert found.dtype == torch.bfloat16
    for name, value in exact.named_parameters():
        step = value.detach().abs() * 2**-7
        assert ((found.get_parameter(name).detach().float() - value.detach()).abs() <= step).all(), name
    assert any(
        not torch.equal(found.get_parameter(name).detach(), value.detach().bfloat16())
        for name, value in exact.named_parameters()
    )
    assert (target / "tokenizer.json").is_file()
    assert (target / "README.md").is_file()


def test_what_cannot_be_written_in_bf16_is_said_in_a_line(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(short(tiny_dir, tmp_path / "run", shard_size="60KB"))
    model = tmp_path / "run" / "model"

    def said() -> str:
        capsys.readouterr()
        assert command(monkeypatch, "export", "bf16", str(tmp_path / "run"), "--output", str(tmp_path / "out")) == 2
        assert not (tmp_path / "out").exists()
        text = capsys.readouterr().err.strip().splitlines()[-1]
        assert "Traceback" not in text
        return text

    config = (model / "config.json").read_text()
    (model / "config.json").write_text(json.dumps(json.loads(config) | {"quantization_config": {"bits": 8}}))
    assert "holds a quantised model" in said()
    (model / "config.json").write_text("{")
    assert "config.json" in said() or "cannot" in said()
    (model / "config.json").write_text(config)
    shard = next(model.glob("model-00002*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000])
    assert str(model) in said()
    shard.unlink()
    assert shard.name in said()


def test_a_study_uploads_nothing(tiny_dir: Path, tmp_path: Path) -> None:
    fields = short(tiny_dir, tmp_path, push_to_hub="me/mine").model_dump(exclude={"learning_rate", "output"})
    with pytest.raises(UserError, match="push_to_hub is for one run; leave it out"):
        sweep({"base": fields, "axes": {"learning_rate": [1e-3]}}, tmp_path / "study")
    with pytest.raises(UserError, match="gguf is of whole weights; take save: merged"):
        short(tiny_dir, tmp_path, method="lora", gguf="convert_hf_to_gguf.py", save="adapter")
