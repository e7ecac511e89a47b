"""Where texts come from: tables in many pieces, files that cannot be read, columns without names."""

from __future__ import annotations

from pathlib import Path

import pandas
import pyarrow as pa
import pytest

from labelfree.modalities.text import Text, TextSettings
from labelfree.needs import Need


def test_a_table_in_many_pieces_is_held_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow joins all pieces each time that rows are taken from them, so that a pass would cost their square."""
    texts = [f"sentence number {number} of the table" for number in range(40)]
    pieces = pa.chunked_array([pa.array(texts[start : start + 4]) for start in range(0, 40, 4)])
    documents = Text().open(pa.table({"text": pieces, "kind": list("ab") * 20}))
    for rows in (documents, documents.chosen(range(39, -1, -1))):
        assert isinstance(rows._text, pa.Array)
    assert documents.texts([39, 0]) == [texts[39], texts[0]]


def test_a_text_that_is_missing_from_a_list_is_empty() -> None:
    documents = Text().open(["some words", None, "and others", float("nan")])
    assert documents.texts(range(4)) == ["some words", "", "and others", ""]
    assert documents.describe().facts["empty"] == "2"


def test_texts_that_a_frame_keeps_as_categories_are_texts() -> None:
    texts = ["some words of a sentence", "and of another one"] * 3
    documents = Text().open(pandas.DataFrame({"text": pandas.Categorical(texts), "n": range(6)}))
    assert documents.texts(range(6)) == texts


@pytest.mark.parametrize("document", ["line", "file"])
def test_files_that_cannot_be_read_are_counted_however_texts_are_cut(document: str, tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text(f"a line with {number}\nand another line\n")
    (tmp_path / "9.txt").write_bytes(bytes(range(256)))
    modality = Text(TextSettings(document=document))
    documents = modality.open(tmp_path)
    modality.fit(documents)
    for needs in (frozenset(), frozenset({Need.VIEWS})):
        found = modality.training_set(documents, needs)
        if document == "line" or not needs:  # whole files are read, and counted, while training goes on
            assert ([item.name for item in found.unreadable], found.source_count()) == (["9.txt"], 10)
    assert documents.describe().facts["unreadable"] == "1"
