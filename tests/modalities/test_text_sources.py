"""Where texts come from: tables in many pieces, files that cannot be read, columns without names."""

from __future__ import annotations

import pyarrow as pa
import pytest

from labelfree.modalities.text import Text


def test_a_table_in_many_pieces_is_held_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow joins all pieces each time that rows are taken from them, so that a pass would cost their square."""
    texts = [f"sentence number {number} of the table" for number in range(40)]
    pieces = pa.chunked_array([pa.array(texts[start : start + 4]) for start in range(0, 40, 4)])
    documents = Text().open(pa.table({"text": pieces, "kind": list("ab") * 20}))
    for rows in (documents, documents.chosen(range(39, -1, -1))):
        assert isinstance(rows._text, pa.Array)
    assert documents.texts([39, 0]) == [texts[39], texts[0]]
