"""Is a checkpoint read as it is, and a bad one refused in words that help?"""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from casestudy.errors import ModelError, TokenError
from casestudy.model.decoder import run
from casestudy.model.loading import available, load, load_tokenizer
from casestudy.model.model import Model
from casestudy.model.sites import Site
from tests.forks import forked, print_sources
from tests.helpers import copy_tokenizer, gpt2_config, gpt2_tensors, write_gpt2

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole, small checkpoint that a test may damage."""
    return write_gpt2(tmp_path / "toy", n_layer=1, n_embd=8, n_head=2)


def change_config(folder: Path, **entries: object) -> None:
    """Set entries of config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def split(folder: Path) -> dict[str, str]:
    """Turn a checkpoint into two shards with an index; the index's weight_map."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    places = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        places |= dict.fromkeys(part, shard)
    write_index(folder, places)
    return places


def write_index(folder: Path, places: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


class TestAsItIs:
    """Loading rewrites nothing."""

    def test_every_number_is_the_files_own(self, folder: Path) -> None:
        model, stored = load(folder, device="cpu"), load_file(folder / WEIGHTS)
        weights, block = model.weights, model.weights.blocks[0]
        assert torch.equal(weights.W_E, stored["wte.weight"])
        assert torch.equal(weights.W_U, stored["wte.weight"].T)
        assert torch.equal(weights.W_pos, stored["wpe.weight"])
        assert torch.equal(weights.final_norm.bias, stored["ln_f.bias"])
        qkv = torch.cat([block.attn.W_Q, block.attn.W_K, block.attn.W_V])
        assert torch.equal(qkv.permute(1, 0, 2).flatten(1), stored["h.0.attn.c_attn.weight"])
        biases = torch.cat([block.attn.b_Q, block.attn.b_K, block.attn.b_V])
        assert torch.equal(biases.flatten(), stored["h.0.attn.c_attn.bias"])
        assert torch.equal(block.attn.W_O.flatten(0, 1), stored["h.0.attn.c_proj.weight"])
        assert torch.equal(block.mlp.W_out, stored["h.0.mlp.c_proj.weight"])
        assert model.rewrites == ()

    def test_nothing_is_copied_in_the_files_own_format(self, folder: Path) -> None:
        weights = load(folder, device="cpu").weights
        attn = weights.blocks[0].attn
        one = {t.untyped_storage().data_ptr() for t in (attn.W_Q, attn.W_K, attn.W_V)}
        assert len(one) == 1
        assert weights.tied
        stored = sum(t.numel() for t in load_file(folder / WEIGHTS).values())
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for _, t in weights.named()
        }
        assert sum(storages.values()) == 4 * stored

    def test_the_files_stay_as_they_were(self, folder: Path) -> None:
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        run(load(folder, device="cpu"), "Hello", logits="last")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    @pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_formats_are_converted_exactly(self, folder: Path, stored: torch.dtype) -> None:
        def cast(tensors: dict[str, Tensor]) -> None:
            tensors.update({name: tensor.to(stored) for name, tensor in tensors.items()})

        change_tensors(folder, cast)
        file = load_file(folder / WEIGHTS)
        model = load(folder, device="cpu")
        assert model.dtype == torch.float32
        assert torch.equal(model.weights.W_E, file["wte.weight"].float())
        assert model.weights.tied

    def test_float64_and_bfloat16_run(self, folder: Path) -> None:
        logits = {}
        for dtype in ("float32", "float64", "bfloat16"):
            model = load(folder, device="cpu", dtype=dtype)
            keep = (Site.PATTERN, Site.MLP_SCALE, Site.RESULT, Site.Q_IN)
            trace = run(model, ["Hello there", "A"], keep=keep, logits="last")
            assert str(model.dtype) == f"torch.{dtype}"
            assert trace.logits.dtype == trace["pattern", 0].dtype == model.dtype
            logits[dtype] = trace.logits.double()
        torch.testing.assert_close(logits["float32"], logits["float64"], rtol=0, atol=1e-4)
        # bfloat16 keeps 8 bits; that it runs and is near is all that is promised
        assert (logits["bfloat16"] - logits["float64"]).abs().max() < 0.3

    def test_model_to_keeps_what_is_tied(self, folder: Path) -> None:
        model = load(folder, device="cpu")
        wide = model.to(dtype=torch.float64)
        assert wide.weights.tied
        assert wide.dtype == torch.float64
        assert torch.equal(wide.weights.W_U, model.weights.W_E.T.double())
        assert model.dtype == torch.float32

    def test_hash_names_the_parameters(self, folder: Path, tmp_path: Path) -> None:
        model = load(folder, device="cpu")
        assert load(folder, device="cpu").weight_hash == model.weight_hash
        assert model.to(dtype=torch.float64).weight_hash != model.weight_hash
        other = write_gpt2(tmp_path / "other", n_layer=1, n_embd=8, n_head=2, seed=1)
        assert load(other, device="cpu").weight_hash != model.weight_hash

    def test_sharded_checkpoint(self, folder: Path) -> None:
        whole = load(folder, device="cpu").weight_hash
        split(folder)
        assert not (folder / WEIGHTS).exists()
        assert load(folder, device="cpu").weight_hash == whole

    def test_transformers_prefix_and_masks(self, folder: Path) -> None:
        whole = load(folder, device="cpu").weight_hash

        def rename(tensors: dict[str, Tensor]) -> None:
            for name in list(tensors):
                tensors[f"transformer.{name}"] = tensors.pop(name)
            tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
            tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
            tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()

        change_tensors(folder, rename)
        assert load(folder, device="cpu").weight_hash == whole

    def test_untied_unembedding(self, folder: Path) -> None:
        own = torch.randn(8192, 8)
        change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": own}))
        with pytest.raises(ModelError, match=r"lm_head\.weight differs from it"):
            load(folder, device="cpu")
        change_config(folder, tie_word_embeddings=False)
        model = load(folder, device="cpu")
        assert torch.equal(model.weights.W_U, own.T)
        assert not model.weights.tied

    def test_where_it_came_from(self, folder: Path) -> None:
        model = load(folder, device="cpu")
        assert model.name == str(folder)
        assert model.source == f"folder: {folder.name}"
        assert load("tiny", device="cpu").source == "bundled with casestudy: tiny"


class TestPickles:
    """Nothing that came with the data is executed."""

    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(self.path),)

        def __init__(self, path: Path) -> None:
            self.path = path

    @pytest.fixture
    def bomb(self, tmp_path: Path) -> Path:
        """Where a folder appears if the pickle is ever opened."""
        return tmp_path / "exploded"

    def plant(self, folder: Path, bomb: Path) -> None:
        for name in ("pytorch_model.bin", "model.pt", "training_args.bin"):
            (folder / name).write_bytes(pickle.dumps(self.Bomb(bomb)))

    def test_the_bomb_is_real(self, folder: Path, bomb: Path) -> None:
        self.plant(folder, bomb)
        pickle.loads((folder / "model.pt").read_bytes())
        assert bomb.is_dir()

    def test_one_beside_the_weights_is_not_opened(self, folder: Path, bomb: Path) -> None:
        self.plant(folder, bomb)
        load(folder, device="cpu")
        assert not bomb.exists()

    def test_alone_it_is_refused_with_how_to_convert(self, folder: Path, bomb: Path) -> None:
        self.plant(folder, bomb)
        (folder / WEIGHTS).unlink()
        with pytest.raises(ModelError, match=r"only pickled weights.*save_pretrained"):
            load(folder, device="cpu")
        assert not bomb.exists()

    def test_an_index_of_pickles_is_refused(self, folder: Path, bomb: Path) -> None:
        self.plant(folder, bomb)
        names = list(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).unlink()
        write_index(folder, dict.fromkeys(names, "pytorch_model.bin"))
        with pytest.raises(ModelError, match="cannot be read"):
            load(folder, device="cpu")
        assert not bomb.exists()

    def test_code_of_its_own_is_refused(self, folder: Path) -> None:
        change_config(folder, auto_map={"AutoModel": "modeling.Evil"})
        with pytest.raises(ModelError, match="runs no code that comes with a checkpoint"):
            load(folder, device="cpu")


class TestDamage:
    @pytest.mark.parametrize("kept", [0.0, 0.00001, 0.5, 0.999])
    def test_truncated(self, folder: Path, kept: float) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[: int(kept * len(data))])
        with pytest.raises(ModelError, match=r"cannot be read.*truncated or damaged"):
            load(folder, device="cpu")

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_not_numbers(self, folder: Path, bad: float) -> None:
        def poison(tensors: dict[str, Tensor]) -> None:
            tensors["h.0.mlp.c_fc.weight"][3, 7] = bad

        change_tensors(folder, poison)
        with pytest.raises(ModelError, match=r"h\.0\.mlp\.c_fc\.weight in .* holds NaN or inf"):
            load(folder, device="cpu")

    def test_missing_weights(self, folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        with pytest.raises(ModelError, match="has no weights"):
            load(folder, device="cpu")

    def test_missing_tensor(self, folder: Path) -> None:
        change_tensors(folder, lambda tensors: tensors.pop("h.0.ln_2.bias"))
        with pytest.raises(ModelError, match=r"has no tensor h\.0\.ln_2\.bias"):
            load(folder, device="cpu")

    def test_tensor_without_a_place(self, folder: Path) -> None:
        extra = {"h.0.adapter.weight": torch.zeros(2), "h.1.ln_1.bias": torch.zeros(8)}
        change_tensors(folder, lambda tensors: tensors.update(extra))
        with pytest.raises(
            ModelError, match=r"unknown tensors \(2\): h\.0\.adapter\.weight, h\.1\.ln_1\.bias"
        ):
            load(folder, device="cpu")

    def test_tensor_of_another_shape(self, folder: Path) -> None:
        change_config(folder, n_inner=16)
        with pytest.raises(
            ModelError, match=r"c_fc\.weight has shape \(8, 32\)\. Allowed: \(8, 16"
        ):
            load(folder, device="cpu")

    def test_missing_shard(self, folder: Path) -> None:
        split(folder)
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(ModelError, match=r"lacks model-00002-of-00002\.safetensors"):
            load(folder, device="cpu")

    def test_shard_that_is_not_what_the_index_says(self, folder: Path) -> None:
        places = split(folder)
        write_index(folder, places | {"ln_f.bias": places["ln_f.weight"]})
        with pytest.raises(ModelError, match=r"not hold what its index says: ln_f\.bias"):
            load(folder, device="cpu")

    @pytest.mark.parametrize("shard", ["../w.safetensors", "/etc/passwd", "a/b", "a\\b", 7])
    def test_index_that_points_outside(self, folder: Path, shard: object) -> None:
        places = split(folder)
        write_index(folder, places | {"ln_f.bias": shard})
        with pytest.raises(ModelError, match="points outside its folder"):
            load(folder, device="cpu")

    @pytest.mark.parametrize("text", ["{}", "[]", "{"])
    def test_index_that_is_none(self, folder: Path, text: str) -> None:
        split(folder)
        (folder / INDEX).write_text(text)
        with pytest.raises(ModelError, match=r"no weight_map|JSON"):
            load(folder, device="cpu")


class TestConfig:
    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"rope_theta": 1e4, "zebra": 1}, "keys casestudy does not know: rope_theta, zebra"),
            ({"n_layer": None}, "no n_layer"),
            ({"vocab_size": None}, "no vocab_size"),
            ({"n_positions": None}, "no n_positions"),
            ({"n_embd": 0}, "n_embd is 0"),
            ({"n_embd": "8"}, "n_embd is '8'. Allowed: int"),
            ({"n_head": 3}, "n_embd 8 is not a multiple of n_head 3"),
            ({"activation_function": "swiglu"}, "activation 'swiglu'"),
            ({"add_cross_attention": True}, "add_cross_attention = True"),
            ({"model_type": "mamba"}, "model_type 'mamba' in config.json. Allowed: .*gpt2"),
            ({"model_type": None}, "no model_type"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_refused(self, folder: Path, entries: dict[str, Any], message: str) -> None:
        change_config(folder, **entries)
        with pytest.raises(ModelError, match=message):
            load(folder, device="cpu")

    def test_keys_of_published_gpt2s_are_known(self, folder: Path) -> None:
        """gpt2-medium, gpt2-xl and distilgpt2 carry keys of their time."""
        change_config(
            folder,
            n_ctx=1024,
            n_special=0,
            predict_special_tokens=True,
            output_past=True,
            _num_labels=1,
            id2label={"0": "LABEL_0"},
            label2id={"LABEL_0": 0},
            summary_type="cls_index",
            summary_use_proj=True,
            summary_activation=None,
            summary_first_dropout=0.1,
            summary_proj_to_labels=True,
            task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
            reorder_and_upcast_attn=True,
            scale_attn_by_inverse_layer_idx=True,
        )
        assert load(folder, device="cpu").config.n_ctx == 64

    @pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
    def test_not_a_json_object(self, folder: Path, text: str) -> None:
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"config\.json .*JSON"):
            load(folder, device="cpu")

    def test_no_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        with pytest.raises(ModelError, match=r"has no config\.json"):
            load(folder, device="cpu")

    def test_tokenizer_of_another_model(self, tmp_path: Path) -> None:
        config = gpt2_config(n_layer=1, n_embd=8, n_head=2, vocab_size=8000)
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(gpt2_tensors(config), tmp_path / WEIGHTS)
        copy_tokenizer(tmp_path)
        with pytest.raises(ModelError, match=r"has 8192 tokens, the embedding 8000 rows"):
            load(tmp_path, device="cpu")

    def test_embedding_with_spare_rows(self, tmp_path: Path) -> None:
        """Embeddings are often padded to a round number; logits then exceed the vocabulary."""
        config = gpt2_config(n_layer=1, n_embd=8, n_head=2, vocab_size=8200)
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(gpt2_tensors(config), tmp_path / WEIGHTS)
        copy_tokenizer(tmp_path)
        model = load(tmp_path, device="cpu")
        logits = run(model, "Hello", logits="last").logits
        assert logits.shape == (1, 8200)
        # such an id may be predicted; it is shown, and is no text
        assert model.tokenizer.string(8199) == "<unused 8199>"
        assert model.tokenizer.is_special(8199)
        with pytest.raises(TokenError, match=r"token id 8200\. Allowed: 0 to 8199"):
            model.tokenizer.string(8200)

    def test_no_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
            load(folder, device="cpu")


class TestOptions:
    def test_dtype_and_device_are_checked_first(self, folder: Path) -> None:
        with pytest.raises(ModelError, match=r"dtype 'int8'. Allowed: float32, float64, bfloat16"):
            load(folder, dtype="int8")
        for device in ("gpu", "meta", "cuda:x"):
            with pytest.raises(ModelError, match=f"device '{device}'. Allowed: auto, cpu, cuda"):
                load(folder, device=device)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
    def test_a_device_that_is_not_there(self, folder: Path) -> None:
        with pytest.raises(ModelError, match="torch sees none here"):
            load(folder, device="cuda")
        assert load(folder).device == torch.device("cpu")

    def test_a_folder_has_no_revisions(self, folder: Path) -> None:
        for name in ("tiny", folder):
            with pytest.raises(ModelError, match="which is a folder"):
                load(name, revision="main")

    @pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/no/where", "a/b/c"])
    def test_no_such_folder(self, name: str) -> None:
        with pytest.raises(ModelError, match=f"no directory or file {name}"):
            load(name)

    def test_a_name_that_no_hub_could_have(self) -> None:
        with pytest.raises(ModelError, match="neither a bundled model, nor a directory, nor a hub"):
            load("two words")


def loaded(*names: str, home: Path, **environment: str) -> list[str]:
    """What loading each name says, in a process of its own."""
    with forked(print_sources, names, {"HF_HOME": str(home)} | environment) as process:
        return process.ended().splitlines()


class TestHub:
    """The hub's local cache, without a network; a closed port on this machine stands for one."""

    def cache(self, home: Path, repo: str, snapshot: str = "abc123") -> Path:
        """Lay out the local cache as huggingface_hub does."""
        base = home / "hub" / f"models--{repo.replace('/', '--')}"
        (base / "refs").mkdir(parents=True)
        (base / "refs" / "main").write_text(snapshot)
        return write_gpt2(base / "snapshots" / snapshot, n_layer=1, n_embd=8, n_head=2)

    @pytest.mark.parametrize(
        "environment",
        [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}],
        ids=["offline", "unreachable"],
    )
    @pytest.mark.slow
    def test_not_cached_says_what_to_do(self, tmp_path: Path, environment: dict[str, str]) -> None:
        start = time.monotonic()
        alias, revision = loaded("gpt2-small", "gpt2@step7", home=tmp_path, **environment)
        assert "gpt2-small is not in the local cache and the hub cannot be reached" in alias
        assert "`hf download openai-community/gpt2 --local-dir FOLDER`" in alias
        assert "the bundled model: tiny" in alias
        assert "gpt2@step7 is not in the local cache" in revision
        assert "--revision step7" in revision
        assert time.monotonic() - start < 120  # an answer, not minutes of retries

    def test_cached_is_found_without_a_network(self, tmp_path: Path) -> None:
        self.cache(tmp_path, "openai-community/gpt2")
        self.cache(tmp_path, "distilgpt2")  # under its older name
        names = ("gpt2", "gpt2-small", "openai-community/gpt2", "distilgpt2")
        said = loaded(*names, home=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
        assert said == [f"hub cache: {name} (abc123)" for name in names]

    def test_a_cached_revision_is_found_by_its_name(self, tmp_path: Path) -> None:
        self.cache(tmp_path, "EleutherAI/pythia", snapshot="final")
        base = tmp_path / "hub" / "models--EleutherAI--pythia"
        (base / "refs" / "step3000").write_text("early")
        write_gpt2(base / "snapshots" / "early", n_layer=1, n_embd=8, n_head=2, seed=1)
        names = ("EleutherAI/pythia", "EleutherAI/pythia@step3000", "EleutherAI/pythia@step9")
        last, early, none = loaded(*names, home=tmp_path, HF_HUB_OFFLINE="1")
        assert last == "hub cache: EleutherAI/pythia (final)"
        assert early == "hub cache: EleutherAI/pythia@step3000 (early)"
        assert "EleutherAI/pythia@step9 is not in the local cache" in none

    def test_what_the_hub_answers_is_said_plainly(self, tmp_path: Path) -> None:
        answers = {"missing": "RepoNotFound", "gated": "GatedRepo", "old": "RevisionNotFound"}

        class Hub(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                (code,) = (c for word, c in answers.items() if f"/{word}/" in self.path)
                self.send_response(404 if code == "RevisionNotFound" else 401)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            missing, gated, old = loaded(
                "some/missing",
                "some/gated",
                "some/old@step7",
                home=tmp_path,
                HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
            )
        finally:
            server.shutdown()
            server.server_close()
        assert missing.startswith("the hub shows no model some/missing. Check the spelling")
        assert gated.startswith("some/gated is gated")
        assert "Accept its terms at https://huggingface.co/some/gated" in gated
        assert old == "some/old has no revision step7 on the hub."

    def test_cached_in_part_is_not_taken_for_whole(self, tmp_path: Path) -> None:
        (self.cache(tmp_path, "openai-community/gpt2") / WEIGHTS).unlink()
        (said,) = loaded("gpt2", home=tmp_path, HF_HUB_OFFLINE="1")
        assert "has no weights" in said


def test_available_lists_the_bundled_model() -> None:
    assert ("tiny", "GPT-2", "bundled") in available()


def test_a_loaded_model_shows_itself_briefly(toy_model: Model) -> None:
    """Millions of numbers, or a 50,000-token vocabulary, must not fill a notebook's cell."""
    assert len(repr(toy_model)) < 1500


def test_a_tokenizer_alone_is_the_models_and_no_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_gpt2(tmp_path)
    whole = load(folder).tokenizer
    (folder / "model.safetensors").unlink()
    for name, there in ((folder, whole), ("tiny", load("tiny").tokenizer)):
        alone = load_tokenizer(name)
        assert alone.ids("It was late.") == there.ids("It was late.")
        assert (alone.n_ctx, alone.prepend_bos) == (there.n_ctx, there.prepend_bos)
