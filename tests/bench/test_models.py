from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.errors import ModelError, Unsupported, UsageError
from bench.families.kv_cache import KVCacheJob
from bench.models import Source, Sources
from bench.plan import parameters_of
from bench.shapes import SYNTHETIC, TINY
from techniques.kv_cache.full_cache import FullCache

TINY_NAMES = [f"tiny:{name}" for name in TINY]


@pytest.mark.parametrize("name", TINY_NAMES)
def test_layers_are_the_model_one_at_a_time(name: str) -> None:
    source = Source(name)
    model = source.model()
    expected = dict(model.named_parameters())
    got = {f"{prefix}.{key}": t for prefix, tensors in source.layers() for key, t in tensors.items()}
    assert got.keys() == expected.keys()
    for key, tensor in got.items():
        assert torch.equal(tensor, expected[key]), key
    groups = [prefix for prefix, _ in source.layers()]
    assert sum(".layers." in g or ".h." in g for g in groups) == 3
    assert source.parameters == sum(p.numel() for p in expected.values())
    assert {entry["read"] for entry in source.log} >= {"model", *groups}


@pytest.mark.parametrize("name", TINY_NAMES)
def test_a_saved_folder_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = Source(name).model()
    model.save_pretrained(tmp_path)
    Source(name).tokenizer.save_pretrained(tmp_path)
    source = Source(str(tmp_path))
    assert source.kind == "folder"
    ids = torch.arange(20)[None]
    assert torch.equal(source.model()(ids).logits, model(ids).logits)
    expected = dict(model.named_parameters())
    got = {f"{prefix}.{key}": t for prefix, tensors in source.layers() for key, t in tensors.items()}
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in got)
    first = source.fingerprint
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert Source(str(tmp_path)).fingerprint != first


def test_random_weights_depend_on_the_name_alone() -> None:
    a, b = Source("tiny:llama").model(), Source("tiny:llama", dtype="bfloat16").model()
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x.to(torch.bfloat16), y)


def test_dropout_is_off_everywhere(tmp_path: Path) -> None:
    model = Source("tiny:llama").model()
    model.config.attention_dropout = 0.5
    model.save_pretrained(tmp_path)
    noisy = Source(str(tmp_path)).model().train()
    ids = torch.arange(20)[None]
    assert torch.equal(noisy(ids).logits, noisy(ids).logits)


def test_position_frequencies_stay_exact() -> None:
    rotary = Source("tiny:llama", dtype="bfloat16").model().model.rotary_emb
    assert torch.equal(rotary.inv_freq, Source("tiny:llama").model().model.rotary_emb.inv_freq)


def test_weights_lie_in_memory_of_their_own(tmp_path: Path) -> None:
    Source("tiny:llama").model().save_pretrained(tmp_path)
    model = Source(str(tmp_path)).model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert any(p.abs().sum() > 0 for p in Source(str(tmp_path)).model().parameters())


def test_a_network_that_does_not_compute_by_sdpa_is_read_all_the_same(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "gemma2", hidden_size=64, num_hidden_layers=2, vocab_size=264, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, pad_token_id=0, sliding_window=16,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, attn_implementation="eager").save_pretrained(tmp_path)
    Source("tiny:llama").tokenizer.save_pretrained(tmp_path)
    source = Source(str(tmp_path))
    assert source.model().config._attn_implementation == "eager"  # type: ignore[union-attr]
    assert source.empty().config._attn_implementation == "eager"  # type: ignore[union-attr]
    assert Source("tiny:llama").model().config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    technique = FullCache()
    made = technique.generate(
        technique.prepare(Sources(source)), KVCacheJob(contexts=torch.arange(40)[None], max_new_tokens=5)
    )
    assert len(made.outputs[0]) == 5


def test_a_hub_model_that_is_not_at_hand_is_one_line() -> None:
    with pytest.raises(ModelError) as error:
        Source("hub:nobody/nothing-of-the-kind").model()
    assert "\n" not in str(error.value)
    assert "check id and revision, or give a folder" in str(error.value)


def test_pickles_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Source("tiny:llama").model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"no weights as \*\.safetensors"):
        Source(str(tmp_path)).model()
    monkeypatch.setattr(
        "bench.model_names._check_folder", lambda name, weights: None
    )  # nor where nobody has looked before
    with pytest.raises(ModelError):
        Source(str(tmp_path)).model()
    with pytest.raises(ModelError, match="pickles"):
        list(Source(str(tmp_path)).layers())


def test_a_missing_helper_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="--draft"):
        Sources(Source("tiny:llama")).get("draft")


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-7b", 6.7), ("llama-13b", 13.0), ("llama-33b", 32.5), ("llama-65b", 65.2), ("smollm2-135m", 0.1345)],
)
def test_published_sizes(name: str, billions: float) -> None:
    # LLaMA (Touvron et al. 2023), table 2
    assert parameters_of(f"synthetic:{name}") == pytest.approx(billions * 1e9, rel=0.01)
    assert name in SYNTHETIC


@pytest.mark.parametrize("name", TINY_NAMES)
def test_the_plan_counts_what_there_is(name: str) -> None:
    model = Source(name).model()
    assert parameters_of(name) == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.5)


def test_byte_tokenizer_round_trip() -> None:
    tokenizer = Source("tiny:llama").tokenizer
    text = "héllo <wörld>\n\t"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert max(ids) < 256
    assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257, 258)


@pytest.mark.parametrize("name", TINY_NAMES)
def test_empty_filled_from_layers_is_the_model(name: str) -> None:
    source = Source(name, dtype="bfloat16")
    empty = source.empty()
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert {p.dtype for p in empty.parameters()} == {torch.bfloat16}
    assert all(b.device.type == "cpu" for b in empty.buffers())
    assert not empty.training
    assert not source.log, "an empty network reads no weights"
    for prefix, tensors in source.layers():
        for key, tensor in tensors.items():
            module, _, own = f"{prefix}.{key}".rpartition(".")
            setattr(empty.get_submodule(module), own, torch.nn.Parameter(tensor))
    empty.tie_weights()
    ids = torch.arange(20)[None]
    assert torch.equal(empty(ids).logits, source.model()(ids).logits)


@pytest.mark.parametrize("saved", [False, True])
def test_options_reach_the_librarys_loading(saved: bool, tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig

    source = Source("tiny:gpt2")
    expected = source.model()
    if saved:
        expected.save_pretrained(tmp_path)
        source = Source(str(tmp_path))
    form = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = source.model(quantization_config=form, device_map={"": "cpu"})
    layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 12
    assert not model.training
    assert all(m.p == 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))
    ids = torch.arange(20)[None]
    distance = (model.train()(ids).logits - expected(ids).logits).abs().max()
    assert 1e-3 < float(distance) < 0.5
