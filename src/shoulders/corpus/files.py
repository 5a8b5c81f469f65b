"""The text of one file: plain text, Markdown, HTML or PDF, without what is no text in it."""

import logging
from pathlib import Path
from typing import NamedTuple

import regex
from pypdf import PdfReader
from selectolax.lexbor import LexborHTMLParser

from shoulders.errors import DataError, first_line
from shoulders.files import legible

PLAIN, MARKDOWN, HTML, PDF = (".txt",), (".md",), (".html", ".htm"), (".pdf",)
WHOLE = PLAIN + MARKDOWN + HTML + PDF  # a file of these is one document

# Bidirectional and other invisible marks go; the joiners stay, which decide on spelling (Persian) and on glyphs.
INVISIBLE = regex.compile(r"[\p{Cf}--[\u200c\u200d]]+", regex.V1)
CONTROL = regex.compile(r"[[\p{Cc}--[\n\t]]\p{Cs}]+", regex.V1)
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
CHARSET = regex.compile(rb"<meta[^>]+charset\s*=\s*[\"']?([\w-]+)", regex.IGNORECASE)
NO_TEXT = ["script", "style", "noscript", "template", "svg"]
BLOCKS = (
    "address,article,aside,blockquote,br,caption,dd,div,dl,dt,figcaption,figure,footer,form,h1,h2,h3,h4,h5,h6,header,hr,"
    "li,main,nav,ol,p,pre,section,table,td,th,tr,ul"
)
FRONT_MATTER = regex.compile(r"\A---\n.*?\n---\n", regex.DOTALL)
FENCE = regex.compile(r"^ {0,3}(?:```|~~~).*$", regex.MULTILINE)
HEADING = regex.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)[ \t#]*$", regex.MULTILINE)
LINK = regex.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)")
HYPHENATED = regex.compile(r"(?<=\p{Ll})-\n(?=\p{Ll})")


class Titled(NamedTuple):
    """A text and what it is called."""

    title: str
    text: str


def clean(text: str) -> str:
    """The text without control characters, invisible marks and half characters; line breaks and tabs stay."""
    return CONTROL.sub(" ", INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def read_text(path: Path) -> Titled:
    """The text of a file, and its title: as the file states it, else the file's name.

    Raises:
        DataError: it cannot be read; the message is the reason without the file's name.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in PDF:
            found = _pdf(path)
        else:
            content = path.read_bytes()
            reader = _html if suffix in HTML else _markdown if suffix in MARKDOWN else _plain
            found = reader(content)
    except OSError as error:
        raise DataError(error.strerror or first_line(error)) from error
    title = " ".join(clean(found.title).split()) or legible(path.stem)
    return Titled(title, clean(found.text))


def _decoded(content: bytes, encoding: str = "utf-8-sig") -> str:
    if content.startswith(UTF_16):
        encoding = "utf-16"
    try:
        return content.decode(encoding, errors="replace")
    except LookupError:  # a page that names an encoding nobody knows
        return content.decode("utf-8", errors="replace")


def _plain(content: bytes) -> Titled:
    return Titled("", _decoded(content))


def _markdown(content: bytes) -> Titled:
    text = FRONT_MATTER.sub("", clean(_decoded(content)), count=1)
    heading = HEADING.search(text)
    return Titled(heading[1] if heading else "", LINK.sub(r"\1", HEADING.sub(r"\1", FENCE.sub("", text))))


def _html(content: bytes) -> Titled:
    declared = CHARSET.search(content[:2048])
    page = LexborHTMLParser(_decoded(content, declared[1].decode() if declared else "utf-8-sig"))
    page.strip_tags(NO_TEXT)
    title = page.css_first("title")
    if page.body is None:
        return Titled("", "")
    for node in page.body.css(BLOCKS):  # words of two paragraphs do not become one
        node.insert_before("\n")
        node.insert_after("\n")
    return Titled(title.text() if title else "", page.body.text())


def _pdf(path: Path) -> Titled:
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError("it is encrypted")
        text = "\n".join(page.extract_text() for page in reader.pages)
        title = str((reader.metadata and reader.metadata.title) or "")
    except (DataError, OSError):
        raise
    except Exception as error:  # a broken PDF makes pypdf raise nearly anything
        raise DataError(f"not a PDF that can be read ({first_line(error)})") from error
    return Titled(title, HYPHENATED.sub("", text))
