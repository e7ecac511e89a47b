"""Text: reading, vocabulary, packing, views, masks, pretext tasks."""

import json
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

import labelfree
from labelfree.data.batch import Sample, Unreadable
from labelfree.data.cache import Cached
from labelfree.data.draw import Draw
from labelfree.encoders.trunk import positions
from labelfree.errors import LabelfreeError
from labelfree.modalities.base import hidden_count
from labelfree.modalities.text import Text, TextSettings
from labelfree.modalities.text.successors import _successors
from labelfree.modalities.text.tokens import Blocks, Vocabulary
from labelfree.modalities.text.vectors import word_vectors
from labelfree.needs import Need
from labelfree.training.plan import make_plan, recognise

WORDS = [
    "river",
    "garden",
    "window",
    "horse",
    "letter",
    "engine",
    "winter",
    "apple",
    "stone",
    "music",
    "paper",
    "light",
]


def corpus(count: int = 60) -> list[str]:
    generator = np.random.default_rng(0)
    return [
        " ".join(generator.choice(WORDS, generator.integers(4, 30))).capitalize() + f", number {n}."
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def fitted() -> Text:
    text = Text(TextSettings(length=16, max_length=24, vocabulary=400))
    text.fit(text.open(corpus()))
    return text


@pytest.fixture
def folder(tmp_path):
    for number, text in enumerate(corpus(6)):
        place = tmp_path / "mail" / ("sport" if number % 2 else "space")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.txt").write_text(text)
    return tmp_path / "mail"


def raw(text: Text, count: int = 8):
    documents = text.open(corpus())
    return text.collate(documents.read(range(count)))


def draw(count: int, view: int = 0) -> Draw:
    return Draw.start(0, 0, 0, torch.arange(count)).view(view)


# ---- reading


def test_every_kind_of_source_gives_the_same_documents(tmp_path):
    texts = corpus(20)
    table = pa.table({"label": ["a", "b"] * 10, "body": texts, "stars": list(range(20))})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    pa.csv.write_csv(table, tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    (tmp_path / "lines.txt").write_text("\n".join(texts))
    frame = table.to_pandas()
    paths = [tmp_path / name for name in ("t.parquet", "t.csv", "t.jsonl", "lines.txt")]
    for source in [texts, table, frame, frame["body"], np.array(texts), *paths]:
        name, _ = recognise(source) if not isinstance(source, pd.Series) else ("text", "")
        documents = Text().open(source)
        assert name == "text"
        assert documents.texts(range(20)) == texts
        assert documents.describe().count == 20
    documents = Text().open(tmp_path / "t.parquet")
    assert list(documents.columns()) == ["label", "stars"]
    assert documents.column("label")[:3].tolist() == ["a", "b", "a"]
    with pytest.raises(LabelfreeError, match=r"no column 'lable'.*Did you mean 'label'"):
        documents.column("lable")


def test_a_folder_of_files(folder):
    (folder.parent / "empty").mkdir()
    documents = Text().open(folder)
    assert documents.name(0) == "space/0.txt"
    assert documents.column("folder").tolist() == ["space"] * 3 + ["sport"] * 3
    (folder / "labels.csv").write_text("file,stars\nspace/0.txt,5\nsport/1.txt,3\nspace/2.txt,5\nsport/3.txt,1\n")
    documents = Text().open(folder)
    assert set(documents.columns()) == {"folder", "file", "stars"}
    assert documents.column("stars")[0] == 5
    with pytest.raises(LabelfreeError, match=r"holds no text.*no files"):
        Text().open(folder.parent / "empty")
    with pytest.raises(LabelfreeError, match="There is nothing at"):
        Text().open(folder / "nowhere")


def test_files_cut_into_lines_and_paragraphs(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\r\n\r\nfour\n")
    assert Text(TextSettings(document="line")).open(tmp_path).texts(range(4)) == ["one", "two", "three", "four"]
    assert Text().open(tmp_path / "a.txt").texts(range(3)) == ["one\ntwo", "three", "four"]
    assert len(Text(TextSettings(document="file")).open(tmp_path / "a.txt")) == 1


def test_files_that_are_no_text_are_quarantined(folder):
    (folder / "space" / "picture.txt").write_bytes(b"\x89PNG\r\n\0\0\0\1\2\3")
    (folder / "space" / "latin.txt").write_bytes("Stra\xdfe und Stra\xdfen".encode("cp1252"))
    (folder / "space" / "wide.txt").write_text("gr\xfcn", encoding="utf-16")
    (folder / "space" / "empty.txt").write_text("")
    documents = Text().open(folder)
    (bad,) = documents.known_unreadable()
    assert bad == Unreadable(bad.index, "space/picture.txt", "binary where text is expected")
    texts = {documents.name(i): text for i, text in enumerate(documents.texts(range(len(documents))))}
    assert texts["space/picture.txt"] == bad
    assert texts["space/latin.txt"] == "Stra\xdfe und Stra\xdfen"
    assert texts["space/wide.txt"] == "gr\xfcn"
    facts = documents.describe().facts
    assert (facts["empty"], facts["unreadable"]) == ("1", "1")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "holds no text"),
        (["", "  "], "holds no text: 2 documents, all empty"),
        (["a", 3], "it holds int"),
        (pa.table({"x": [1, 2]}), "no column of text"),
        ({"train": ["a"]}, "dictionary with train"),
    ],
)
def test_bad_sources_are_refused_in_words(source, message):
    with pytest.raises(LabelfreeError, match=message):
        Text().open(source)


def test_a_named_column(tmp_path):
    table = pa.table({"title": ["short"] * 3, "body": ["much longer texts"] * 3, "n": [1, 2, 3]})
    assert Text(TextSettings(column="title")).open(table).texts([0]) == ["short"]
    with pytest.raises(LabelfreeError, match="Did you mean 'title'"):
        Text(TextSettings(column="titel")).open(table)
    with pytest.raises(LabelfreeError, match="holds int64, not text"):
        Text(TextSettings(column="n")).open(table)


def test_fingerprints_follow_the_content(folder):
    before = Text().open(folder).fingerprint()
    assert Text().open(folder).fingerprint() == before
    (folder / "space" / "new.txt").write_text("more")
    assert Text().open(folder).fingerprint() != before
    assert Text().open(corpus()).fingerprint() != Text().open(corpus()[::-1]).fingerprint()


# ---- vocabulary


def test_a_vocabulary_is_a_function_of_the_data_and_travels_as_json(fitted):
    again = Text(fitted.settings)
    again.fit(again.open(corpus()))
    assert again.state() == fitted.state()
    other = Text(fitted.settings)
    other.load_state(json.loads(json.dumps(fitted.state())))
    text = "The River, a garden\n and  a [MASK] – naïve 你好"
    (ids,) = other.vocabulary.encode([text])
    np.testing.assert_array_equal(ids, fitted.vocabulary.encode([text])[0])
    assert other.vocabulary.decode(ids) == "the river, a garden\n and a [mask] – naïve 你好"
    words = fitted.vocabulary
    assert ids[-1] == words.sep
    assert not {words.mask, words.unk, words.pad, words.cls} & set(ids.tolist())
    assert fitted.target_dim == words.size <= 400


def test_a_given_tokenizer_is_used_and_gets_what_it_lacks(tmp_path, fitted):
    from tokenizers import Tokenizer, models, pre_tokenizers

    given = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "<unk>", *WORDS])}, "<unk>"))
    given.pre_tokenizer = pre_tokenizers.Whitespace()
    given.enable_padding(length=50)
    given.enable_truncation(2)
    given.save(str(tmp_path / "tokenizer.json"))
    text = Text(TextSettings(tokenizer=str(tmp_path)))
    text.fit(text.open(corpus()))
    words = text.vocabulary
    assert (words.pad, words.unk, words.size) == (0, 1, 2 + len(WORDS) + 3)
    assert words.encode(["river garden what"])[0].tolist() == [2, 3, 1, words.sep]
    with pytest.raises(LabelfreeError, match="There is no tokenizer"):
        Vocabulary.read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(LabelfreeError, match="is not a tokenizer"):
        Vocabulary.read(tmp_path / "bad.json")


def test_before_fit_there_is_no_vocabulary():
    with pytest.raises(LabelfreeError, match="no vocabulary yet"):
        Text().open(corpus()).read([0])


# ---- packing and batches


@pytest.mark.parametrize("length", [8, 16, 64, 10_000])
def test_packing_loses_no_token_and_invents_none(length):
    text = Text(TextSettings(length=length, vocabulary=400))
    documents = text.open([*corpus(), "", " "])
    text.fit(documents)
    blocks = text.training_set(documents, frozenset({Need.MASK}))
    assert isinstance(blocks, Blocks)
    stream = np.concatenate(text.vocabulary.encode(corpus()))
    read = [item.data for item in blocks.read(range(len(blocks)))]
    assert {len(ids) for ids in read} == {blocks.length}
    end = len(stream) - blocks.length
    np.testing.assert_array_equal(np.concatenate(read[:-1]), stream[: blocks.length * (len(read) - 1)])
    np.testing.assert_array_equal(read[-1], stream[end:])
    assert blocks.length == min(length - 1, len(stream) // 2)
    assert text.collate(blocks.read([0, 1])).lengths is None


def test_packing_on_disk_is_the_same(fitted, monkeypatch):
    documents = fitted.open(corpus())
    here = Blocks(documents, fitted.vocabulary, 15)
    monkeypatch.setattr("labelfree.modalities.text.tokens.IN_MEMORY", 0)
    there = Blocks(documents, fitted.vocabulary, 15)
    for a, b in zip(here.read(range(len(here))), there.read(range(len(there))), strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    assert here.fingerprint() == there.fingerprint()


def test_workers_share_what_is_packed_on_disk(fitted, monkeypatch):
    monkeypatch.setattr("labelfree.modalities.text.tokens.IN_MEMORY", 0)
    blocks = Blocks(fitted.open(corpus()), fitted.vocabulary, 15)
    fewer = len(ForkingPickler.dumps(Blocks(blocks.documents, fitted.vocabulary, 15, np.asarray(blocks.ids).copy())))
    sent = ForkingPickler.dumps(blocks)
    assert len(sent) < fewer - blocks.ids.nbytes + 2000
    np.testing.assert_array_equal(pickle.loads(sent).ids, blocks.ids)


def test_packing_reports_what_it_could_not_read(folder, fitted):
    (folder / "space" / "bad.txt").write_bytes(b"\0\1\2")
    blocks = fitted.training_set(fitted.open(folder))
    assert [item.name for item in blocks.unreadable] == ["space/bad.txt"]
    for path in folder.rglob("*.txt"):
        path.write_bytes(b"\0")
    with pytest.raises(LabelfreeError, match="None of the 7 documents can be read"):
        fitted.training_set(fitted.open(folder))


def test_views_are_learnt_from_documents_that_are_not_empty(fitted):
    documents = fitted.open(["", *corpus(5), " "])
    chosen = fitted.training_set(documents, frozenset({Need.VIEWS}))
    assert chosen.texts(range(len(chosen))) == corpus(5)
    assert chosen.name(0) == "row 1"


def test_documents_are_cut_at_max_length_and_padded(fitted):
    batch = raw(fitted)
    assert batch.data.shape[1] == fitted.settings.max_length - 1
    view = fitted.prepare(batch)
    assert (view.data[:, 0] == fitted.vocabulary.cls).all()
    torch.testing.assert_close(view.lengths, batch.lengths + 1)
    for ids, length in zip(view.data, view.lengths, strict=True):
        assert ids[length - 1] == fitted.vocabulary.sep
        assert (ids[length:] == fitted.vocabulary.pad).all()


def test_datasets_travel_to_workers_and_caches(fitted):
    documents = fitted.open(corpus())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(documents)).read([3])[0].data, documents.read([3])[0].data)
    held = Cached(fitted.open([text for text in corpus() if len(text) > 100]), fitted)
    assert held.origin()[0].texts([0]) == [next(text for text in corpus() if len(text) > 100)]
    held.batch(np.arange(5))


# ---- views


@pytest.mark.parametrize("augment", ["crop", "delete", "dropout"])
def test_two_views_of_a_sample_depend_on_it_alone(augment):
    text = Text(TextSettings(length=16, max_length=24, vocabulary=400, augment=augment))
    text.fit(text.open(corpus()))
    batch = raw(text)
    view = text.view(batch, draw(8))
    again = text.view(batch[2:4], draw(8)[2:4])
    width = again.data.shape[1]
    torch.testing.assert_close(view.data[2:4, :width], again.data)
    torch.testing.assert_close(view.lengths[2:4], again.lengths)
    other = text.view(batch, draw(8, 1))
    assert torch.equal(view.data, other.data) == (augment == "dropout")
    assert not torch.equal(view.draw.key, other.draw.key)
    for ids, length, source in zip(view.data, view.lengths, batch.data, strict=True):
        assert set(ids[1:length].tolist()) <= set(source.tolist())
        assert (ids[length:] == text.vocabulary.pad).all()
        assert 2 <= length <= (16 if augment == "crop" else 24)


def test_light_views_keep_every_token(fitted):
    batch = raw(fitted)
    torch.testing.assert_close(fitted.view(batch, draw(8), "light").data, fitted.prepare(batch).data)


def test_overlapping_views_share_the_tokens_they_say(fitted):
    batch = fitted.collate(fitted.training_set(fitted.open(corpus())).read(range(8)))
    lengths = set()
    for step in range(20):
        drawn = Draw.start(0, 0, step, batch.index)
        one, two, tokens = fitted.overlapping_views(batch, drawn)
        assert tokens.shape[:2] == (2, 8)
        torch.testing.assert_close(one.data.gather(1, tokens[0]), two.data.gather(1, tokens[1]))
        assert tokens.min() >= 1
        lengths.add(tokens.shape[2])
    assert len(lengths) > 3


def test_next_sentence_joins_halves_of_the_same_or_of_another_sample(fitted):
    batch = fitted.collate(fitted.training_set(fitted.open(corpus())).read(range(8)))
    which = torch.tensor([0, 1] * 4)
    view = fitted.transformations()["next-sentence"].apply(batch, which, draw(8))
    half = (batch.data.shape[1] + 1) // 2
    sep = fitted.vocabulary.sep
    seconds = {tuple(row.tolist()) for row in batch.data[:, half:]}
    for ids, source, changed in zip(view.data, batch.data, which, strict=True):
        assert ids[0] == fitted.vocabulary.cls
        assert torch.equal(ids[1 : half + 1], source[:half])
        assert ids[half + 1] == sep
        assert torch.equal(ids[half + 2 :], source[half:]) != bool(changed)
        assert tuple(ids[half + 2 :].tolist()) in seconds


def test_order_swaps_the_halves_whatever_their_lengths(fitted):
    batch = raw(fitted)
    view = fitted.transformations()["order"].apply(batch, torch.tensor([0, 1] * 4), draw(8))
    for row in range(8):
        length = int(batch.lengths[row])
        half = (length + 1) // 2
        parts = [batch.data[row, :half].tolist(), batch.data[row, half:length].tolist()]
        a, b = parts if row % 2 == 0 else parts[::-1]
        words = fitted.vocabulary
        assert view.data[row, : view.lengths[row]].tolist() == [words.cls, *a, words.sep, *b]


# ---- masks and targets


@pytest.mark.parametrize("ratio", [0.15, 0.5])
def test_masks_hide_words_and_the_promised_number(fitted, ratio):
    packed = fitted.view(fitted.collate(fitted.training_set(fitted.open(corpus())).read(range(8))), draw(8), "light")
    mask = fitted.sample_mask(packed, draw(8), ratio)
    assert (mask.sum(dim=1) == hidden_count(mask.shape[1], ratio)).all()
    assert not mask[:, 0].any()
    padded = fitted.prepare(raw(fitted))
    mask = fitted.sample_mask(padded, draw(8), ratio)
    special = (padded.data == fitted.vocabulary.pad) | (padded.data == fitted.vocabulary.cls)
    assert not (mask & special).any()
    assert (mask.sum(dim=1) >= 1).all()
    assert (mask.sum(dim=1) <= hidden_count(mask.shape[1], ratio)).all()
    shorter = fitted.sample_mask(padded[:2], draw(8)[:2], ratio)
    torch.testing.assert_close(mask[:2], shorter)


def test_hidden_tokens_look_as_berts_do(fitted):
    ids = torch.full((64, 100), 50)
    view = fitted.prepare(fitted.collate([Sample(row.numpy(), i) for i, row in enumerate(ids)]))
    mask = fitted.sample_mask(view, draw(64), 0.5)
    seen, unseen = fitted.hide(view, mask, draw(64))
    words, share = fitted.vocabulary, mask.sum()
    assert torch.equal(seen.data[~mask], view.data[~mask])
    assert abs(float(unseen.sum() / share) - 0.8) < 0.02
    assert (seen.data[unseen] == words.mask).all()
    left = mask & ~unseen
    assert abs(float((seen.data[left] != 50).sum() / share) - 0.1) < 0.02
    assert not torch.isin(seen.data[left], torch.tensor([words.pad, words.mask, words.cls, words.sep])).any()
    torch.testing.assert_close(fitted.targets(view), view.data)


def test_the_loss_of_a_token_is_its_surprise(fitted):
    prediction = torch.randn(2, 3, fitted.target_dim)
    target = torch.randint(fitted.target_dim, (2, 3))
    wanted = -prediction.log_softmax(dim=-1).gather(2, target[..., None]).squeeze(2)
    torch.testing.assert_close(fitted.token_loss(prediction, target), wanted)


def test_the_best_guess_of_one_that_sees_nothing(fitted):
    ids = np.concatenate(fitted.vocabulary.encode(corpus()))
    share = fitted.target_bias().exp()
    assert share.sum() == pytest.approx(1, abs=1e-5)
    assert share.argmax() == np.bincount(ids).argmax()
    assert share.min() > 0
    again = Text(fitted.settings)
    again.load_state(json.loads(json.dumps(fitted.state())))
    assert torch.equal(again.target_bias(), fitted.target_bias())


def test_a_run_starts_from_another_and_keeps_its_words(tmp_path):
    quick = {"steps": 1, "batch_size": 8, "threads": 1, "method": "bert", "encoder": "transformer:pico"}
    first = labelfree.pretrain(corpus(), out=tmp_path / "first", length=16, vocabulary=400, **quick)
    del quick["encoder"]
    again = labelfree.pretrain([text[::-1] for text in corpus()], out=tmp_path / "again", init=first.path, **quick)
    assert again.modality.state() == first.modality.state()


# ---- for people, and for baselines


def test_what_people_see_is_escaped_and_short(fitted):
    text = "<script>alert(1)</script> " + "river " * 500
    (sample,) = fitted.open([text]).read([0])
    shown = fitted.show(sample)
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert len(shown) < 400


def test_raw_features_learn_words_from_the_training_texts_alone(fitted):
    train, test = fitted.open(["river horse", "river garden"]), fitted.open(["river unseen", "unseen", ""])
    a, b = fitted.raw_features(train, [test])
    assert a.shape == (2, 5)
    assert b.shape == (3, 5)
    assert b[0].nnz == 1
    assert b[1:].nnz == 0


def test_defaults_can_be_trained_with(fitted):
    found = fitted.open(corpus()).describe()
    from labelfree import registry
    from labelfree.modalities.base import Budget

    for budget in (Budget(60, 1e11, False), Budget(None, 1e13, True)):
        chosen = {choice.key: choice.value for choice in fitted.defaults(found, budget)}
        registry.method(chosen["method"])
        assert registry.build_encoder(chosen["encoder"], fitted).dim > 0


def test_line_ends_of_windows_make_no_difference(tmp_path: Path) -> None:
    text = "\n\n".join(f"paragraph {number},\non two lines" for number in range(9))
    found = []
    for name, ends in (("unix", "\n"), ("windows", "\r\n")):
        (tmp_path / f"{name}.txt").write_bytes(text.replace("\n", ends).encode())
        documents = Text().open(tmp_path / f"{name}.txt")
        found.append(documents.texts(range(len(documents))))
    assert found[0] == found[1] == text.split("\n\n")


def neighbours(run, word: str) -> list[str]:
    """The words whose vectors are nearest to that of `word`."""
    vocabulary, table = run.modality.vocabulary, run.encoder.token_table().detach()
    ids = {name: int(vocabulary.encode([name])[0][0]) for name in ("cat", "dog", "sun", "moon", "red", "blue")}
    near = torch.nn.functional.cosine_similarity(table[ids[word]], table[[ids[name] for name in ids]], dim=1)
    return [list(ids)[i] for i in near.argsort(descending=True).tolist()]


@pytest.mark.parametrize(("start", "found"), [("counted", True), ("random", False)])
def test_word_vectors_start_at_which_words_stand_near_which(tmp_path, start, found):
    """Words that come in the same company lie together before a step of any size is made."""
    generator = np.random.default_rng(0)
    company = [("cat", "dog", "eats sleeps barks"), ("sun", "moon", "rises sets shines"), ("red", "blue", "paint ink")]
    texts = []
    for _ in range(300):
        *either, around = company[generator.integers(3)]
        texts.append(" ".join(generator.permutation([generator.choice(either), *around.split()])))
    options = {"modality": "text", "method": "masked", "encoder": "transformer:pico", "steps": 1, "threads": 1}
    options |= {"length": 8, "vocabulary": 400, "batch_size": 8, "learning_rate": 1e-9, "word_vectors": start}
    run = labelfree.pretrain(texts, out=tmp_path / "run", **options)
    pairs = {"cat": "dog", "sun": "moon", "red": "blue"}
    assert all(neighbours(run, word)[:2] == [word, other] for word, other in pairs.items()) == found
    noted = [choice for choice in run.info["choices"] if choice["key"] == "word_vectors"]
    assert bool(noted) == found


@pytest.mark.parametrize(("method", "start"), [("masked", "counted"), ("bert", "random"), ("gpt", "random")])
def test_recipes_of_papers_that_start_at_random_do(method, start):
    plan, *_ = make_plan(
        corpus(), modality="text", method=method, encoder="auto", seed=0, seconds=None, settings={"vocabulary": 300}
    )
    assert plan.modality_settings["word_vectors"] == start


def test_a_network_that_starts_counted_passes_words_on(tmp_path):
    """Before training the features of a text are the mean of its words' vectors, normalised, with their places."""
    texts = corpus()
    options = {"modality": "text", "method": "masked", "encoder": "transformer:pico", "steps": 1, "threads": 1}
    options |= {"vocabulary": 300, "batch_size": 8, "learning_rate": 1e-9, "precision": "32"}
    run = labelfree.pretrain(texts, out=tmp_path / "run", **options)
    batch = run.modality.prepare(run.modality.collate(run.open(texts).read([0])))
    with torch.no_grad():
        words = run.encoder.norm_in(run.encoder.stem(batch)[0])
        expected = run.encoder.norm(words + positions(words)).mean(dim=1)
        torch.testing.assert_close(run.encoder(batch).pooled, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("blank", [False, True])
def test_texts_that_were_read_whole_are_not_read_again(monkeypatch, blank):
    """Blocks hold the same ids, whether they were made when the vocabulary was learnt or are made anew."""
    text, texts = Text(TextSettings(length=16, vocabulary=400)), [*corpus(), " " if blank else "the end"]
    text.fit(documents := text.open(texts))
    anew = Blocks(documents, text.vocabulary, 15)
    asked, encode = [], Vocabulary.encode
    monkeypatch.setattr(Vocabulary, "encode", lambda self, *given: asked.append(given) or encode(self, *given))
    assert np.array_equal(text.training_set(documents).ids, anew.ids)
    assert bool(asked) == blank
    other = text.open(texts[::-1])  # as many and as long, but not what was read
    assert np.array_equal(text.training_set(other).ids, Blocks(other, text.vocabulary, 15).ids)
    text.load_state(text.state())
    asked.clear()
    text.training_set(documents)
    assert asked, "the vocabulary may be another"


def chains(count, seed):
    """Texts in which each word of ten has two that may follow, the first of them three times as often."""
    generator, letters = np.random.default_rng(seed), "abcdefghij"
    texts = []
    for _ in range(count):
        places = np.cumsum(1 + 2 * (generator.random(12) < 0.25)) + generator.integers(10)
        texts.append(" ".join(letters[place % 10] for place in places))
    return texts


@pytest.mark.parametrize(("method", "known"), [("next", True), ("gpt", False)])
def test_what_follows_what_is_known_before_training(tmp_path, method, known):
    """After a step of no size a model foretells as well as the counts of pairs do, and a paper's as single words do."""
    options = {"modality": "text", "encoder": "transformer:pico", "steps": 1, "threads": 1, "vocabulary": 300}
    options |= {"length": 16, "batch_size": 8, "learning_rate": 1e-9, "precision": "32"}
    run = labelfree.pretrain(chains(200, 0), method=method, out=tmp_path / "run", **options)
    found = np.log(run.perplexity(chains(100, 1)).per_token)
    # twelve words and an end: any of ten, then one of two, and at last the end, which is one of three things
    pair, end = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)), 1 / 12
    ends = -(end * np.log(end) + (1 - end) * np.log(1 - end))
    by_pairs = (np.log(10) + 11 * pair + 12 * ends) / 13
    assert (found < 1.15 * by_pairs) == known
    assert found < 1.1 * np.log(11)


def test_the_blocks_are_left_to_learn_the_rest_and_what_stands_near_is_kept(fitted):
    encoder, head = fitted.transformer("pico", causal=True), torch.nn.Linear(64, fitted.vocabulary.size)
    fitted.warm(encoder)
    before = {name: value.clone() for name, value in encoder.blocks.state_dict().items()}
    words = encoder.token_table().detach().clone()
    state = torch.random.get_rng_state()
    assert fitted.warm_next(encoder, head).key == "word_vectors"
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in encoder.blocks.state_dict().items())
    assert torch.equal(encoder.token_table()[:, :32], words[:, :32])
    assert not torch.equal(encoder.token_table()[:, 32:], words[:, 32:])
    assert all(parameter.grad is None for parameter in [*encoder.parameters(), *head.parameters()])


def test_successors_are_counted_also_after_the_start_of_a_window():
    ids = np.array([5, 6, 5, 6, 7, 5, 6])
    counts = _successors(ids, size=9, begin=0, window=3).toarray()
    assert counts.sum() == 6 + 2
    assert counts[5, 6] == 3
    assert (counts[6, 5], counts[6, 7], counts[7, 5]) == (1, 1, 1)
    assert (counts[0, 5], counts[0, 6]) == (1, 1)  # windows begin at places 0 and 3


def test_word_vectors_are_the_factorised_mutual_information():
    """Beside a plain reference: pairs at most ten words apart in one text, none across texts or with special tokens."""
    generator = np.random.default_rng(0)
    ids = generator.integers(2, 12, 400)
    ids[::37] = 1  # ends of texts
    vectors, seen = word_vectors(ids, size=14, dim=14, special=[0, 1], end=1)
    counts = np.zeros((14, 14))
    for text in np.split(ids, np.flatnonzero(ids == 1)):
        words = text[text > 1]
        for place, word in enumerate(words):
            for other in words[place + 1 : place + 11]:
                counts[word, other] += 1
                counts[other, word] += 1
    often = counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(counts / often[:, None] / (often**0.75 / (often**0.75).sum()))
    information = np.where(np.isfinite(information), information.clip(0), 0)
    assert seen.tolist() == (information.any(axis=1)).tolist()
    # all directions but the smallest: rows keep their inner products
    left, values, _ = np.linalg.svd(information)
    kept = int(seen.sum()) - 1
    expected = (left * values)[:, :kept]
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-4)


@pytest.mark.parametrize("ids", [[], [1, 1], [5], [5, 1, 5]])
def test_without_company_no_word_has_a_counted_vector(ids):
    vectors, seen = word_vectors(np.array(ids, dtype=np.int64), size=8, dim=4, special=[0, 1], end=1)
    assert vectors.shape == (8, 4)
    assert not seen.any()
