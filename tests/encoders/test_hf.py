"""Networks of transformers: same features in any company, drawn dropout, weights that go back unchanged."""

import json

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2Model

import labelfree
from labelfree.data.draw import Draw
from labelfree.encoders.hf import HF
from labelfree.errors import LabelfreeError, Refusal
from labelfree.modalities.text import Text, TextSettings
from labelfree.needs import Need
from labelfree.registry import build_encoder, encoder_options, lasting

TEXTS = [
    f"The {a} stood by the {b}, {n} times."
    for n, a in enumerate(["cat", "dog", "hen", "fox"])
    for b in ("mat", "river")
]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def text() -> Text:
    made = Text(TextSettings(length=16, max_length=40, vocabulary=300))
    made.fit(made.open([*TEXTS, " ".join(TEXTS)]))
    return made


@pytest.fixture
def bert(tmp_path, text):
    """A folder as the library saves it: configuration, weights with a head, tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(**SMALL, vocab_size=text.vocabulary.size, max_position_embeddings=64)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text.state()["tokenizer"])
    return tmp_path


def view(text: Text, texts: list[str]):
    return text.prepare(text.collate(text.open(texts).read(range(len(texts)))))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "gpt2"])
def test_kinds_of_networks_are_built_offline_and_mind_padding(kind, text):
    torch.manual_seed(0)
    sizes = {"distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}}
    sizes["gpt2"] = {"n_embd": 32, "n_layer": 2, "n_head": 2}
    spec = "hf:" + json.dumps({"model_type": kind, **sizes.get(kind, SMALL)})
    encoder = build_encoder(spec, text).eval()
    texts = [TEXTS[0], TEXTS[1] + TEXTS[2] + TEXTS[3]]
    together = encoder(view(text, texts))
    assert together.tokens.shape[2] == encoder.dim == 32
    for row, alone in enumerate(texts):
        torch.testing.assert_close(together.pooled[row], encoder(view(text, [alone])).pooled[0], rtol=1e-4, atol=1e-5)
    assert (Need.CAUSAL in encoder.can) == (kind == "gpt2")
    listed = [p for group in encoder.layers() for p in group]
    assert len(listed) == len(set(listed)) == len(list(encoder.parameters()))
    assert len(encoder.layers()) >= 3
    again = build_encoder(encoder.spec, text).eval()
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(view(text, texts)).pooled, together.pooled, rtol=0, atol=0)


def test_hidden_tokens_are_not_seen(text):
    encoder = build_encoder("hf:bert-tiny", text).eval()
    seen = view(text, TEXTS[:4])
    mask = torch.zeros_like(seen.data, dtype=torch.bool)
    mask[:, 2] = True
    changed = seen.with_(data=torch.where(mask, 7, seen.data))
    torch.testing.assert_close(encoder(seen, mask).tokens, encoder(changed, mask).tokens)
    assert not torch.allclose(encoder(seen).tokens, encoder(changed).tokens)


def test_dropout_belongs_to_the_sample_and_the_view(text):
    encoder = build_encoder("hf:bert-tiny", text).train()
    seen = view(text, [TEXTS[0], " ".join(TEXTS), TEXTS[2]])
    draw = Draw.start(0, 0, 0, seen.index)
    first = encoder(seen.with_(draw=draw)).pooled
    torch.testing.assert_close(first, encoder(seen.with_(draw=draw)).pooled, rtol=0, atol=0)
    torch.testing.assert_close(first[1:], encoder(seen.with_(draw=draw)[1:]).pooled, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first, encoder(seen.with_(draw=draw.view(1))).pooled)
    plain = encoder(seen).pooled
    torch.testing.assert_close(plain, encoder.eval()(seen).pooled)


def test_weights_of_a_folder_come_in_and_go_back_unchanged(bert, text):
    encoder = build_encoder(f"hf:{bert}", text)
    theirs = BertForMaskedLM.from_pretrained(bert).bert.state_dict()
    state = encoder.library_state()
    for name, weight in theirs.items():
        torch.testing.assert_close(state[name], weight, rtol=0, atol=0)
    back = BertModel(BertConfig.from_pretrained(bert))
    back.load_state_dict(state)
    batch = view(text, TEXTS[:2]).with_(lengths=None)
    wanted = back.eval()(input_ids=batch.data).last_hidden_state
    torch.testing.assert_close(encoder.eval()(batch).tokens, wanted)
    assert encoder_options(f"hf:{bert}") == {"tokenizer": str(bert / "tokenizer.json")}


def test_a_run_finds_the_folder_of_its_network_from_another_working_directory(bert, tmp_path, monkeypatch):
    monkeypatch.chdir(bert.parent)
    assert lasting(f"hf:./{bert.name}") == f"hf:{bert}"
    assert lasting("hf:bert-tiny") == "hf:bert-tiny"
    assert lasting(f"towers:hf:./{bert.name}+nano") == f'towers:["hf:{bert}", "nano"]'
    (bert / "texts.txt").write_text("\n".join(TEXTS))
    options = {"modality": "text", "method": "masked", "document": "line", "threads": 1, "steps": 1}
    run = labelfree.pretrain(f"{bert.name}/texts.txt", encoder=f"hf:./{bert.name}", out=bert.name + "/run", **options)
    assert (run.path / "checkpoints" / "step-000000000").exists(), "the seed does not say where it started"
    (run.path / "run.json").write_text(json.dumps({**run.info, "state": "stopped"}))
    monkeypatch.chdir("/")
    assert labelfree.pretrain(resume=run.path).state == "finished"


def test_library_weights_can_be_given_later(bert, text):
    spec = "hf:" + json.dumps({"model_type": "bert", **SMALL, "max_position_embeddings": 64})
    encoder = build_encoder(spec, text)
    encoder.load_library_state(BertForMaskedLM.from_pretrained(bert).state_dict())
    batch = view(text, TEXTS[:2])
    wanted = build_encoder(f"hf:{bert}", text).eval()(batch).pooled
    torch.testing.assert_close(encoder.eval()(batch).pooled, wanted)
    with pytest.raises(LabelfreeError, match=r"is missing.*and [0-9]+ more"):
        encoder.load_library_state({})
    state = {**encoder.library_state(), "embeddings.word_embeddings.weight": torch.zeros(3, 32)}
    with pytest.raises(LabelfreeError, match="expected"):
        encoder.load_library_state(state)


def test_a_run_does_not_need_the_folder_again(bert, text):
    encoder = build_encoder(f"hf:{bert}", text)
    spec, state = encoder.spec, encoder.state_dict()
    for file in bert.iterdir():
        file.unlink()
    again = build_encoder(spec, text)
    again.load_state_dict(state)
    assert again.window == encoder.window == 64


def test_what_does_not_fit_is_refused_in_words(bert, text, tmp_path):
    with pytest.raises(Refusal, match=r"cannot be kept from seeing the future.*hf:gpt2"):
        build_encoder("hf:bert-tiny", text, causal=True)
    with pytest.raises(LabelfreeError, match=r"no kind of network 'bret'.*Did you mean 'bert'"):
        build_encoder("hf:bret", text)
    with pytest.raises(LabelfreeError, match=r"no config\.json in"):
        build_encoder(f"hf:{tmp_path / 'nowhere'}/x", text)
    with pytest.raises(LabelfreeError, match="is no encoder of text"):
        build_encoder("hf:t5", text)
    other = Text(TextSettings(vocabulary=262))
    other.fit(other.open(["aaaa", "abab"]))
    with pytest.raises(Refusal, match=r"read with another, of 26\d"):
        build_encoder(f"hf:{bert}", other)
    (bert / "config.json").write_text("[]")
    with pytest.raises(LabelfreeError, match="is no configuration of a model"):
        build_encoder(f"hf:{bert}", text)


def test_a_causal_network_whose_vocabulary_lacks_special_tokens(tmp_path, text):
    words = text.vocabulary.size
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=words - 5, bos_token_id=1, eos_token_id=1)
    GPT2Model(config).save_pretrained(tmp_path / "gpt")
    (tmp_path / "words.json").write_text(text.state()["tokenizer"])
    own = Text(TextSettings(tokenizer=str(tmp_path / "words.json")))
    own.fit(own.open(TEXTS))
    encoder = build_encoder(f"hf:{tmp_path / 'gpt'}", own, causal=True).eval()
    assert {Need.CAUSAL, Need.TOKENS} <= encoder.can
    assert encoder(view(own, [TEXTS[0], TEXTS[0] + TEXTS[1]])).pooled.isfinite().all()


def test_variants_are_listed():
    assert {"bert", "bert-mini"} <= set(HF.variants())
