"""Bytes to text, in whatever encoding they are, or a refusal instead of wrong letters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aurify.files import require
from aurify.knowledge.reading.refusals import Refused

if TYPE_CHECKING:
    from charset_normalizer import CharsetMatch

HEAD = 8192  # bytes that tell text from other things
MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
PRINTABLE = bytes([9, 10, 12, 13, 27, *range(32, 127), *range(128, 256)])
TEXT_CODEC = re.compile(  # no other codecs: some take quadratic time
    r"utf-?(8|16|32)|(us-)?ascii|latin|iso-?(8859|2022)|windows-|cp\d|koi8|big5|gb|euc-|shift|tis-?620", re.IGNORECASE
)
CHARSET = re.compile(
    rb"<(?:meta[^>]{0,200}?charset|\?xml[^>]{0,200}?encoding)\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE
)
NOT_ASCII = re.compile(rb"[\x80-\xff]+")
MAX_DAMAGE = 0.05  # of the letters beyond ASCII in a damaged UTF-8 text
SAMPLE = 100_000  # bytes from the first that is not ASCII
ALONE = 0.3  # more of these bytes stand alone in Latin scripts (0.4 at least), fewer in others (0.2 at most)
LEAST_BYTES = 30  # of these; in fewer, charset-normalizer takes Cyrillic for Arabic
MOST_CHAOS, LEAST_COHERENCE = 0.05, 0.1
RARE = "shift_jis_2004 shift_jisx0213 utf_16_be utf_16_le utf_32_be utf_32_le mac_latin2 ptcp154"  # they fit anything
CENTRAL_EUROPE = {"bs", "cs", "hr", "hu", "pl", "ro", "sk", "sl", "sr"}
BALTIC = {"lt", "lv"}
TURKIC = {"az", "tk", "tr"}
KANA = re.compile("[\u3040-\u30ff]")
WESTERN = re.compile("[äöüßéèêëàâîïôûùçñáíóúìòãõåøæœðþ]|(?<![a-z])[ÄÖÜÅØÆÉÈÀÇÑ]")  # no capitals in the midst of words
IN_WORDS = re.compile(r"(?<=[a-z])[^\w\s\x00-\x7f\xad\u2010-\u201d](?=[a-z])")  # symbols in the midst of words
MOST_SYMBOLS = 0.1  # of what is not ASCII
UNKNOWN = "text in an encoding that cannot be told: save it as UTF-8"


def decode_document(data: bytes, declared: str | None = None) -> str:
    """Tries the byte order mark, the declared encoding, UTF-8 and detection, in this order. Raises `Refused`."""
    head = data[:HEAD]
    marked = find_byte_order_mark(head)
    if marked in (None, "utf-8-sig") and (b"\0" in head or len(head.translate(None, PRINTABLE)) * 10 > len(head)):
        raise Refused("binary file")
    escaped = "iso2022_jp" if b"\x1b$B" in head else None
    for codec in (marked, declared, escaped, "utf-8"):
        if codec is not None and TEXT_CODEC.match(codec):
            try:
                return data.decode(codec)
            except (LookupError, ValueError):
                continue
    return data.decode(detect_document_codec(data), "replace")


def find_byte_order_mark(head: bytes) -> str | None:
    """The encoding that the first bytes of a text name, or that its zeros tell."""
    marked = next((codec for mark, codec in MARKS.items() if head.startswith(mark)), None)
    return marked or find_unmarked_utf16(head)


def find_unmarked_utf16(head: bytes) -> str | None:
    """UTF-16 by the half of its two bytes that is zero in ASCII characters; other files have zeros in both."""
    zeros = {index % 2 for index, byte in enumerate(head) if byte == 0}
    if len(zeros) != 1 or head.count(0) * 100 < len(head):
        return None
    codec = "utf-16-le" if zeros == {1} else "utf-16-be"
    text = head[: len(head) // 2 * 2].decode(codec, "replace")
    return codec if all(letter.isprintable() or letter.isspace() for letter in text) else None


def decode_html(data: bytes, charset: str | None = None) -> str:
    """`charset` is what the web server says; else the page itself may name one."""
    found = CHARSET.search(data[:HEAD])
    return decode_document(data, charset or (found[1].decode("ascii") if found else None))


def detect_document_codec(data: bytes) -> str:
    """The encoding of text that is not UTF-8. Raises `Refused` where none is likely."""
    as_utf8 = data.decode("utf-8", "replace")
    if as_utf8.count("\ufffd") < MAX_DAMAGE * sum(not letter.isascii() for letter in as_utf8):
        return "utf-8"
    start = next(NOT_ASCII.finditer(data)).start()
    sample = data[start : start + SAMPLE]
    runs = [len(run) for run in NOT_ASCII.findall(sample)]
    if runs.count(1) > ALONE * sum(runs):
        return find_latin_codec(sample)
    if sum(runs) >= LEAST_BYTES:
        from charset_normalizer import from_bytes

        best = from_bytes(data, cp_exclusion=RARE.split()).best()
        if best is not None and (best.multi_byte_usage or is_likely_codec(best)):
            return "euc_jp" if best.multi_byte_usage and is_euc_jp(sample) else best.encoding
    raise Refused(UNKNOWN)


def is_likely_codec(match: CharsetMatch) -> bool:
    """Encodings of one byte a letter fit any bytes: damaged Korean would become Cyrillic or Thai."""
    return match.chaos <= MOST_CHAOS and match.coherence >= LEAST_COHERENCE


def is_euc_jp(sample: bytes) -> bool:
    """Short Japanese text passes for Korean. Every third letter of Japanese or so is kana."""
    try:
        text = sample.decode("euc_jp")
    except ValueError:
        return False
    return len(KANA.findall(text)) * 4 > len(text)


def find_latin_codec(sample: bytes) -> str:
    """The encoding that the language needs; a few wrong letters do not hide the language. charset-normalizer, which
    counts letters, takes short French for Central European."""
    detector = require("py3langid", "memory", "to read text that is not UTF-8")
    language = detector.classify(sample.decode("cp1252", "replace"))[0]
    if language in CENTRAL_EUROPE:
        return "cp1250" if re.search(rb"[\x80-\x9f]", sample) else "iso8859_2"
    if language in TURKIC or language in BALTIC:
        return "cp1254" if language in TURKIC else "cp1257"
    # Windows, Mac and DOS: the one in which the letters are those of Western languages
    texts = {codec: sample.decode(codec, "replace") for codec in ("cp1252", "mac_roman", "cp850")}
    best = max(texts, key=lambda codec: len(WESTERN.findall(texts[codec])))
    if len(IN_WORDS.findall(texts[best])) > MOST_SYMBOLS * sum(not letter.isascii() for letter in texts[best]):
        raise Refused(UNKNOWN)
    return best
