"""Bytes as characters: the encoding of a text file is told by its bytes."""

from __future__ import annotations

import codecs

#: What is looked at to tell text from other things.
HEAD = 4096
_MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def encoding_of(content: bytes) -> str:
    """The encoding of a text, or of its beginning: by its byte-order mark, else UTF-8, damaged in places perhaps, else
    Windows-1252.

    Raises:
        ValueError: it is no text.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    refuse_binary(content[:HEAD])
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content)  # the last character of a beginning may be cut
    except UnicodeDecodeError:
        return "utf-8-sig" if _mostly_utf8(content) else "cp1252"
    return "utf-8-sig"


def _mostly_utf8(content: bytes) -> bool:
    """Whether more characters beyond ASCII are UTF-8 than are not, as of a text in which a few bytes are damaged."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(content)
    ascii = len(content.translate(None, bytes(range(128, 256))))
    return len(text) - ascii > 2 * text.count("\ufffd")


def decode(content: bytes) -> str:
    """Bytes as text, in the encoding that they look like; what is no character of it becomes U+FFFD.

    Raises:
        ValueError: they are no text.
    """
    return content.decode(encoding_of(content), errors="replace")


def refuse_binary(head: bytes) -> None:
    """Raises ValueError where the beginning of a file is no text."""
    if head.startswith(tuple(mark for mark, _ in _MARKS)):
        return
    control = sum(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in head)
    if b"\0" in head or control * 20 > len(head):
        raise ValueError("binary where text is expected")
