"""The text of one file (plain text, Markdown, HTML or PDF), without markup and other parts that are not text."""

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

import regex
import webencodings
import yaml
from markdown_it import MarkdownIt
from pypdf import PdfReader
from selectolax.lexbor import LexborHTMLParser, LexborNode

from shoulders.errors import DataError, first_line
from shoulders.store.encodings import decode
from shoulders.store.files import printable_path

PLAIN, MARKDOWN, HTML, PDF = (".txt",), (".md",), (".html", ".htm"), (".pdf",)
WHOLE = PLAIN + MARKDOWN + HTML + PDF  # a file of these is one document

# Bidirectional and other invisible marks go; the joiners stay, which decide on spelling (Persian) and on glyphs.
INVISIBLE = regex.compile(r"[\p{Cf}--[\u200c\u200d]]+", regex.V1)
CONTROL = regex.compile(r"[[\p{Cc}--[\n\t]]\p{Cs}]+", regex.V1)
SOFT_HYPHEN = regex.compile(r"\u00ad[ \t]*\n[ \t]*")  # a word broken at the end of a line
HYPHEN = regex.compile(r"(?<=\p{Ll})[-\u2010][ \t]*\n[ \t]*(?=\p{Ll})")
PRESENTED = regex.compile(r"[\ufb00-\ufdff\ufe70-\ufefc]+")  # ligatures and letter forms, which PDFs hold for letters

# Sources: HTML Standard, sections 15.3 (rendering; noscript as with scripts) and 13.2.3.2 (encodings); MathML Core 4.
HIDDEN = (
    "area,base,basefont,datalist,iframe,link,meta,noembed,noframes,noscript,param,rp,script,style,svg,template,"
    "title,annotation,annotation-xml,[hidden]:not([hidden=until-found i]),dialog:not([open])"
)
BLOCKS = (
    "address,article,aside,blockquote,body,caption,center,dd,details,dialog,dir,div,dl,dt,fieldset,figcaption,figure,"
    "footer,form,h1,h2,h3,h4,h5,h6,header,hgroup,hr,legend,li,listing,main,menu,nav,ol,optgroup,option,p,plaintext,pre,"
    "search,section,summary,table,tbody,tfoot,thead,tr,ul,xmp"
)
BOXES = "audio,button,canvas,input,marquee,meter,object,progress,rt,select,td,textarea,th,video"
APART = {tag: space for tags, space in ((BLOCKS, "\n\n"), (BOXES, " ")) for tag in tags.split(",")}
META = regex.compile(rb"<meta\b[^<>]*charset[^<>]*>?", regex.IGNORECASE)
CHARSET = regex.compile(r"charset\s*=\s*[\"']?([^\s;\"']+)", regex.IGNORECASE)
XML_ENCODING = regex.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']*)[\"']")
BROWSERS = "cp1252"  # what browsers read an undeclared page as; HTML Standard, section 13.2.3.2, step 9
# What the Standard's encodings are called in Python where it is not what they are called there.
SUPERSETS = {"gbk": "gb18030", "utf-16le": "utf-8", "utf-16be": "utf-8", "x-user-defined": "cp1252"}

FRONT_MATTER = regex.compile(r"\A---[ \t]*\n(?!\s*\n)(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", regex.DOTALL)
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
LONGEST = 200  # characters of a heading; longer ones are text that is marked up as one
# Elements that would take the text after them with them; as text, like GitHub Flavored Markdown 6.11.
SWALLOWING = regex.compile(
    r"<(?=/?(?:title|textarea|style|xmp|iframe|noembed|noframes|script|plaintext|template|noscript|frameset)\b)",
    regex.IGNORECASE,
)

# lexbor's time grows with the square of the depth of a page, and a parse cannot be interrupted. So a page of many tags
# is parsed first in a process of its own, which the system ends when its processor time is used up.
MANY_TAGS = 10_000  # fewer take half a second at most, however deep
SECONDS, BYTES = 1, 5_000_000  # processor time, and one second more for so many bytes; 10 MB take a second
TRIAL = """
import resource, sys
from selectolax.lexbor import LexborHTMLParser
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1])))
LexborHTMLParser(sys.stdin.buffer.read())
"""


class Section(NamedTuple):
    """A part of a text, up to the next one: a page of a PDF, or what follows a heading.

    Attributes:
        start: characters of the text before it.
        path: ("page 3",), or the headings that it stands under, outermost first.
    """

    start: int
    path: tuple[str, ...]


class FileText(NamedTuple):
    """The text of a file, and its title.

    Attributes:
        sections: in their order; none before the first heading.
        lost: parts that could not be read: place in the file, and reason.
    """

    title: str
    text: str
    lost: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()


def clean(text: str) -> str:
    """Return the text without control characters, invisible marks and half characters; line breaks and tabs stay."""
    text = SOFT_HYPHEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return CONTROL.sub(" ", INVISIBLE.sub("", text))


def read_text(path: Path) -> FileText:
    """Return the text of a file, and its title: the one that the file states, else the file's name.

    Raises:
        DataError: it cannot be read; the message is the reason without the file's name.
    """
    suffix = path.suffix.lower()
    try:
        reader = _html if suffix in HTML else _markdown if suffix in MARKDOWN else _plain
        found = _pdf(path) if suffix in PDF else reader(path.read_bytes())
    except OSError as error:
        raise DataError(error.strerror or first_line(error)) from error
    title = " ".join(clean(found.title).split()) or printable_path(path.stem)
    return found._replace(title=title)


def _decoded(content: bytes, declared: str = "") -> tuple[str, Sequence[tuple[str, str]]]:
    """Return the text, and which parts of it are lost."""
    text, broken = decode(content, declared)
    return text, [("", f"{broken:,} of its characters could not be read and are U+FFFD now")] if broken else []


def _plain(content: bytes) -> FileText:
    text, lost = _decoded(content)
    return FileText("", clean(text), lost)


def _markdown(content: bytes) -> FileText:
    text, lost = _decoded(content)
    title, text = _front_matter(clean(text))
    page = _parsed(_commonmark().render(text))
    headings = (_text_of(heading) or _text_of(heading, pictures=True) for heading in page.css(",".join(HEADINGS)))
    text, sections = _sectioned(page.body, pictures=True)
    return FileText(title or next(filter(None, headings), ""), text, lost, sections)


@cache
def _commonmark() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"maxNesting": 100}).enable(["table", "strikethrough"])
    for rule in ("html_block", "html_inline"):
        parser.add_render_rule(rule, _markup)
    return parser


def _markup(_: Any, tokens: Sequence[Any], at: int, *__: Any) -> str:
    return SWALLOWING.sub("&lt;", tokens[at].content)


def _front_matter(text: str) -> tuple[str, str]:
    """Return the title that YAML before a text gives it, and the text; without such YAML, all of it."""
    matter = FRONT_MATTER.match(text)
    about: Any = None
    with suppress(yaml.YAMLError, ValueError, RecursionError):  # a rule, then text
        about = yaml.safe_load(matter[1]) if matter else None
    if not matter or not isinstance(about, dict):
        return "", text
    title = about.get("title")
    plain = isinstance(title, str | int | float | date)  # the text of a list of aliases of aliases is without bounds
    return (str(title) if plain else ""), text[matter.end() :]


def _html(content: bytes) -> FileText:
    text, lost = _decoded_page(content)
    page = _parsed(text)
    title = page.css_first("title:not(svg title)")
    body, sections = _sectioned(page.body)
    return FileText(title.text() if title else "", body, lost, sections)


def _decoded_page(content: bytes) -> tuple[str, Sequence[tuple[str, str]]]:
    """Return the text of a page; where nothing tells its encoding, read it as browsers do and say so."""
    declared = _declared(content)
    try:
        return _decoded(content, declared)
    except DataError:
        if declared:
            raise
        text, lost = _decoded(content, BROWSERS)  # refuses what is no text once more
        return text, [("", "it does not say its encoding: read as windows-1252, which is a guess"), *lost]


def _parsed(page: str) -> LexborHTMLParser:
    """Return the tree of a page.

    Raises:
        DataError: its tags nest so deeply that parsing would take minutes, or the parser crashes.
    """
    if (tags := page.count("<")) > MANY_TAGS:
        content = page.encode(errors="replace")
        seconds = SECONDS + len(content) // BYTES
        tried = subprocess.run(
            [sys.executable, "-P", "-c", TRIAL, str(seconds)], input=content, capture_output=True, check=False
        )
        if tried.returncode:
            raise DataError(
                f"its {tags:,} tags nest too deeply: they are not parsed within {seconds} s of processor time"
            )
    return LexborHTMLParser(page)


def _declared(content: bytes) -> str:
    """Return Python's name of the encoding that a page says it has; "" if it says none that there is."""
    labels: list[str] = []
    head = content[: max((meta.end() for meta in META.finditer(content)), default=0)]
    for meta in _parsed(head.decode("latin-1")).css("meta"):  # none of a comment, a script or a title
        about = meta.attributes
        labels.append(about.get("charset") or "")
        if (about.get("http-equiv") or "").lower() == "content-type":
            labels += CHARSET.findall(about.get("content") or "")
    labels += [label.decode("latin-1") for label in XML_ENCODING.findall(content, endpos=1024)]
    known = [encoding for label in labels if (encoding := webencodings.lookup(label))]
    if known and known[0].name == "replacement":
        raise DataError("its declared encoding is not allowed in HTML: convert it")
    return SUPERSETS.get(known[0].name, known[0].codec_info.name) if known else ""


class _Heading(NamedTuple):
    """A heading that is open: its level, and the number of parts before its own."""

    level: int
    first: int


def _text_of(root: LexborNode | None, *, pictures: bool = False) -> str:
    """Return the visible text of an element, words of two boxes apart, and on request the text of pictures."""
    return "".join(_parts(root, pictures=pictures)[0]).strip()


def _sectioned(root: LexborNode | None, *, pictures: bool = False) -> tuple[str, list[Section]]:
    """Return the clean text of an element, and its sections."""
    parts, headings = _parts(root, pictures=pictures)
    texts: list[str] = []
    sections: list[Section] = []
    path: list[tuple[int, str]] = []
    length, before = 0, 0
    for level, first, last in headings:
        name = " ".join(clean("".join(parts[first:last])).split())
        if 0 < len(name) <= LONGEST:
            texts.append(clean("".join(parts[before:first])))
            length, before = length + len(texts[-1]), first
            path = [*(one for one in path if one[0] < level), (level, name)]
            sections.append(Section(length, tuple(name for _, name in path)))
    text = "".join([*texts, clean("".join(parts[before:]))])
    space = len(text) - len(text.lstrip())
    return text.strip(), [Section(max(0, start - space), names) for start, names in sections]


def _parts(root: LexborNode | None, *, pictures: bool) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Return the parts of an element's visible text, and of each heading its level, first part and end."""
    parts: list[str] = []
    headings: list[tuple[int, int, int]] = []
    hidden = {node.mem_id for node in root.css(HIDDEN)} if root else set()
    todo: list[LexborNode | str | _Heading] = [root] if root else []
    while todo:
        node = todo.pop()
        if isinstance(node, str):
            parts.append(node)
        elif isinstance(node, _Heading):
            headings.append((node.level, node.first, len(parts)))
        elif node.is_text_node:
            parts.append(node.text_content or "")
        elif node.is_element_node and node.mem_id not in hidden:
            apart = APART.get(node.tag or "", "")
            parts += [apart, _instead(node, pictures=pictures)]
            opened = [_Heading(int(node.tag[1]), len(parts))] if node.tag in HEADINGS else []
            todo += [apart, *opened, *reversed(_children(node))]
    return parts, sorted(headings, key=lambda heading: heading[1])


def _instead(node: LexborNode, *, pictures: bool) -> str:
    """Return the text that stands for an element without text."""
    if node.tag == "img" and pictures:
        return node.attributes.get("alt") or ""
    return "\n" if node.tag == "br" else ""


def _children(node: LexborNode) -> list[LexborNode]:
    """Return the children of an element; ruby annotations come after their base text."""
    found, child = [], node.child
    while child is not None:
        found.append(child)
        child = child.next
    return sorted(found, key=lambda one: one.tag == "rt") if node.tag == "ruby" else found


def _pdf(path: Path) -> FileText:
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError("it is encrypted")
        count = len(reader.pages)
    except (DataError, OSError):
        raise
    except Exception as error:  # a broken PDF makes pypdf raise nearly anything
        raise DataError(f"not a PDF that can be read ({first_line(error)})") from error
    texts: dict[int, str] = {}
    lost: list[tuple[str, str]] = []
    for number in range(1, count + 1):
        try:
            texts[number] = reader.pages[number - 1].extract_text().lstrip(" \t")
        except Exception as error:  # a broken page makes pypdf raise nearly anything, too
            lost.append((f"page {number}", f"it cannot be read ({first_line(error)})"))
    if lost and not texts:
        raise DataError(f"none of its {count} pages can be read; {lost[0][0]}: {lost[0][1]}")
    title = ""
    with suppress(Exception):  # the text is there without it
        title = str((reader.metadata and reader.metadata.title) or "")
    text, sections = _joined(texts)
    return FileText(title, text, lost, sections)


def _joined(pages: Mapping[int, str]) -> tuple[str, list[Section]]:
    """Return the clean text of a PDF's pages, words broken at a line's or page's end made whole, and its sections."""
    texts: list[str] = []
    sections: list[Section] = []
    length = 0
    for (number, page), (_, after) in pairwise([*pages.items(), (0, "")]):
        letters = PRESENTED.sub(lambda found: normalize("NFKC", found[0]), page)
        begun = "a" if after[:1].islower() else "."  # how the next page begins, for words broken at the end of this one
        texts.append(clean(HYPHEN.sub("", f"{letters}\n{begun}"))[:-1])
        sections.append(Section(length, (f"page {number}",)))
        length += len(texts[-1])
    return "".join(texts), sections
