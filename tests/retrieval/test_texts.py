"""The text of pages, Markdown and PDFs: all of it, its words apart, nothing else."""

import re
import resource
import time
from functools import cache

import pytest
import webencodings
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter
from webencodings.labels import LABELS

from pdfs import save_pdf
from shoulders.errors import DataError
from shoulders.retrieval.texts import APART, read_text

some = settings(max_examples=60, deadline=None, database=None)
words = st.lists(st.from_regex(r"[a-z]{2,8}", fullmatch=True), min_size=1, max_size=6)
SPECIAL = {"utf-16le", "utf-16be", "replacement", "x-user-defined"}
DECLARED = sorted(label for label, name in LABELS.items() if name not in SPECIAL)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What is read of a file of some name and content: title, text with white space made single, and what is lost."""
    folder = tmp_path_factory.mktemp("files")

    def tell(name, content):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        title, text, lost, _ = read_text(folder / name)
        return title, " ".join(text.split()), list(lost)

    return tell


@cache
def letters(codec):
    """Of some scripts, those that an encoding has."""
    ranges = [(0x30, 0x530), (0x5D0, 0x5EB), (0x621, 0x64B), (0xE01, 0xE2F), (0x3041, 0x3100), (0x4E00, 0x5000)]
    pool = "".join(chr(number) for start, end in [*ranges, (0xAC00, 0xAE00)] for number in range(start, end))
    return [one for one in pool if one.isalnum() and codec.encode(one, "ignore")[0]]


@st.composite
def declared(draw):
    """A label, and words in its encoding."""
    label = draw(st.sampled_from(DECLARED))
    codec = webencodings.lookup(label).codec_info
    text = " ".join(draw(st.lists(st.text(letters(codec), min_size=1, max_size=8), min_size=1, max_size=4)))
    return label, text, codec.encode(text)[0]


@settings(some, max_examples=200)
@given(declared())
def test_text_in_any_encoding_that_a_page_declares(told, example):
    label, text, content = example
    page = f"<!-- <meta charset=utf-7> --><meta charset='{label}'><p>".encode() + content
    assert told("a.html", page) == ("a", text, [])
    page = f"<meta http-equiv=Content-Type content='text/html; charset={label}'><p>".encode() + content
    assert told("a.html", page) == ("a", text, [])


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("<meta charset=utf-16>", "utf-8"),  # nobody could have read that in UTF-16
        ("<meta charset=utf_16_le><meta charset=idna><meta charset=koi8-r>", "koi8-r"),  # labels that are none
        ("<meta charset=koi8-r><meta charset=utf-8>", "koi8-r"),
        ("<title><meta charset=koi8-r></title><script>'<meta charset=koi8-r>'</script>", "utf-8"),
        ('<?xml version="1.0" encoding="windows-1251"?>', "cp1251"),
        ("<meta charset=koi8-r>", "utf-8-sig"),
        ("<meta charset=koi8-r>", "utf-16"),
        (f"<!--{'x' * 5000}--><meta charset=koi8-r>", "koi8-r"),
    ],
)
def test_which_encoding_a_page_has(told, head, encoding):
    assert told("a.html", f"{head}<p>Нева, река".encode(encoding))[1:] == ("Нева, река", [])


def test_an_encoding_that_pages_may_not_have(told):
    with pytest.raises(DataError, match="its declared encoding is not allowed in HTML"):
        told("a.html", "<meta charset=hz-gb-2312><p>~{VPND~}")


def test_a_page_with_a_broken_character_is_read_and_the_loss_named(told):
    content = b"<meta charset=utf-8><p>" + "für ".encode() * 30 + b"M\xfcnchen"
    _, text, lost = told("a.html", content)
    assert text.endswith("für M\ufffdnchen")
    assert lost == [("", "1 of its characters could not be read and are U+FFFD now")]


@some
@given(st.lists(st.tuples(st.sampled_from([*APART, "br", "b", "span", "i-own"]), words), min_size=2, max_size=8))
def test_boxes_keep_words_apart_and_text_styles_do_not(told, parts):
    """Tables and choices are not parsed outside of theirs, void elements hold nothing."""
    whole = {"body", "table", "caption", "tbody", "thead", "tfoot", "tr", "td", "th", "input", "br", "hr", "plaintext"}
    page, seen = "", ""
    for tag, some_words in parts:
        text = " ".join(some_words)
        apart = tag in APART or tag == "br"
        page += f"<table><tr><td>{text}</table>" if tag in whole else f"<{tag} open>{text}</{tag}>"
        seen += f" {text} " if apart else text
    assert told("a.html", page)[1] == " ".join(seen.split())


def test_what_a_page_hides_is_no_text(told):
    page = (
        "<svg><title>no</title></svg><title>Yes</title><p>a<!-- no --><script>no</script><noscript>no</noscript>"
        "<template>no</template><span hidden>no</span><dialog>no</dialog><iframe>no</iframe>b"
        "<details>closed</details><i hidden=until-found>found</i> <ruby>東<rp>(<rt>とう<rp>)</rp>京<rt>きょう</ruby>"
    )
    assert told("a.html", page)[:2] == ("Yes", "a b closed found 東京 とう きょう")


BLOCKS = [
    "{}", "# {}", "{}\n===", "> {}", "- {}", "1. {}", "```sh\n{}\n```", "    {}", "---\n\n{}\n\n---", "**{}**", "`{}`",
    "[{}](http://a.example)", "![{}](a.png)", "<div>{}</div>", "see <title> {}", "| {} |\n|---|\n| x |", "> > - {}",
    "~~~\n# no heading\n{}", "<script>{}</script>",
]  # fmt: skip


@some
@given(st.lists(st.tuples(st.sampled_from(BLOCKS), words), min_size=1, max_size=6))
def test_no_word_of_markdown_is_lost(told, blocks):
    content = "\n\n".join(block.format(" ".join(some_words)) for block, some_words in blocks)
    _, text, lost = told("a.md", content)
    wanted = [word for _, some_words in blocks for word in some_words]
    found = iter(re.findall("[a-z]+", text))  # a fence that is not closed shows what follows as it is
    assert [word for word in wanted if word not in found] == []  # in their order
    assert lost == []


def test_what_looks_like_a_field_after_a_rule_is_text(told):
    assert told("a.md", "---\n\nNote: the bridge is closed.\n\n---\n")[1] == "Note: the bridge is closed."


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("```sh\n# a comment\n```\n\n    # code\n\n# The tool\n", "The tool"),
        ("Set *ext*\nheading\n---\n", "Set ext heading"),
        ("## [Name](http://a.example) ![state](b.svg) `x` &amp; y ##\n", "Name x & y"),
        ("# ![The logo](a.svg)\n", "The logo"),
        ("<h1 align=center>By markup</h1>\n\ntext", "By markup"),
        ("---\ntitle: 'From: the matter'\ntags: [a]\n---\n# Heading\n", "From: the matter"),
        ("---\ntags: [a]\n...\n# Heading\n", "Heading"),
        ("---\n\nNo matter.\n\n---\n\nThen text.\n", "a"),
        ("---\n\nNote: a rule\n\n---\n\n# Heading\n", "Heading"),
        ("---\nkey: [broken\n---\n", "key: [broken"),
        ("text only", "a"),
    ],
)
def test_titles_of_markdown(told, content, title):
    assert told("a.md", content)[0] == title
    assert told("a.md", "\ufeff" + content.replace("\n", "\r\n"))[0] == title


def test_a_broken_page_costs_one_page(tmp_path):
    save_pdf(tmp_path / "a.pdf", [["One."], ["Two."], ["Three."]], broken=[1])
    title, text, lost, _ = read_text(tmp_path / "a.pdf")
    assert (title, text.split()) == ("a", ["One.", "Three."])
    assert [where for where, _ in lost] == ["page 2"]
    assert lost[0][1].startswith("it cannot be read (")
    save_pdf(tmp_path / "b.pdf", [["One."], ["Two."]], broken=[0, 1])
    with pytest.raises(DataError, match="none of its 2 pages can be read; page 1: it cannot"):
        read_text(tmp_path / "b.pdf")


@pytest.mark.parametrize("algorithm", ["RC4-40", "RC4-128", "AES-128", "AES-256"])
def test_a_pdf_whose_user_password_is_empty_is_open(tmp_path, algorithm):
    save_pdf(tmp_path / "a.pdf", [["Open words."]])
    for password in ("", "secret"):
        writer = PdfWriter(clone_from=PdfReader(tmp_path / "a.pdf"))
        writer.encrypt(password, "owner", algorithm=algorithm)
        writer.write(tmp_path / "b.pdf")
        if password:
            with pytest.raises(DataError, match="it is encrypted"):
                read_text(tmp_path / "b.pdf")
        else:
            assert read_text(tmp_path / "b.pdf").text.strip() == "Open words."


def test_letters_and_words_of_a_pdf_are_whole(tmp_path):
    save_pdf(
        tmp_path / "a.pdf", [["The \1re sta-", "tion's o\2ce is self\3", "ish in 1999-", "2001, Anglo-"], ["Saxon."]]
    )
    text = " ".join(read_text(tmp_path / "a.pdf").text.split())
    assert text == "The fire station's office is selfish in 1999- 2001, Anglo- Saxon."


@pytest.mark.parametrize("name", ["a.html", "a.md"])
@pytest.mark.parametrize("page", ["<div>" * 200_000, "<p>text\n" * 50_000 + "<ul><li>" * 100_000])
def test_a_page_that_nests_too_deeply_is_refused_soon(told, name, page):
    started = time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(DataError, match="tags nest too deeply"):
        told(name, page)
    used = time.process_time() - started[0] + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started[1]
    assert used < 5  # unbounded, it takes minutes


def test_a_charset_at_the_end_of_a_deep_page_does_not_stall(told):
    with pytest.raises(DataError, match="tags nest too deeply"):
        told("a.html", "<div>" * 200_000 + "<meta charset=utf-8>")


def test_long_pages_and_deep_ones_are_read(told):
    _title, text, lost = told("long.html", "<p>some <b>bold</b> words</p>\n" * 20_000)
    assert (text.count("some bold words"), lost) == (20_000, [])
    assert told("deep.html", "<div>" * 3_000 + "word") == ("deep", "word", [])
    assert told("spans.html", "<span>" * 50_000 + "word") == ("spans", "word", [])


def test_a_page_that_does_not_say_its_encoding_is_read_as_browsers_do_and_named(told):
    _title, text, lost = told("a.html", "<p>Mal\xe9, 5 \x80</p>".encode("latin-1"))
    assert text == "Mal\u00e9, 5 \u20ac"
    assert lost == [("", "it does not say its encoding: read as windows-1252, which is a guess")]
    assert told("b.html", "<p>Mal\u00e9</p>") == ("b", "Mal\u00e9", [])
    with pytest.raises(DataError, match="is not text"):
        told("c.html", bytes(range(256)) * 4)
    with pytest.raises(DataError, match="declared as utf-8"):
        told("d.html", b"<meta charset=utf-8><p>\xff\xfe\xfd")
    with pytest.raises(DataError, match="it is not UTF-8"):
        told("e.txt", "Mal\xe9".encode("latin-1"))


def test_sections_begin_where_their_headings_are(tmp_path):
    (tmp_path / "a.md").write_text(
        "\u200b\n\nintro\r\n\n# Guide\n\none\x07\n\n## Set *up*\n\ntwo\u00ad\n\n#### Deep\n\n## Use\n\n#\n\nend"
    )
    (tmp_path / "a.html").write_text(
        "<body> intro<h1>Guide</h1>one<h2>Set <i>up</i></h2>two<div><h4>Deep</h4></div><h2>Use</h2><h1 hidden>No</h1>"
        f"<h1></h1>end<h1>{'long ' * 50}</h1>"
    )
    for name in ("a.md", "a.html"):
        text, sections = read_text(tmp_path / name).text, read_text(tmp_path / name).sections
        assert [path for _, path in sections] == [
            ("Guide",), ("Guide", "Set up"), ("Guide", "Set up", "Deep"), ("Guide", "Use")
        ]  # fmt: skip
        assert [text[start:].split()[0] for start, _ in sections] == ["Guide", "Set", "Deep", "Use"]


def test_sections_of_a_pdf_are_its_pages(tmp_path):
    save_pdf(tmp_path / "a.pdf", [["One self\3"], ["ish sta-"], ["tion."], ["Four."], ["Five-"]], broken=[3])
    text, sections = read_text(tmp_path / "a.pdf").text, read_text(tmp_path / "a.pdf").sections
    assert text.split() == ["One", "selfish", "station.", "Five-"]
    assert [(text[start:].split()[0], path) for start, path in sections] == [
        ("One", ("page 1",)), ("ish", ("page 2",)), ("tion.", ("page 3",)), ("Five-", ("page 5",))
    ]  # fmt: skip


@some
@given(st.lists(st.tuples(st.integers(1, 6), words, words), max_size=12))
def test_text_and_headings_do_not_depend_on_sections(told, parts):
    page = "".join(f"<h{level}>{' '.join(name)}</h{level}><p>{' '.join(text)}" for level, name, text in parts)
    assert told("a.html", page)[1] == " ".join(word for _, name, text in parts for word in [*name, *text])


def test_small_files_do_not_take_for_ever(told):
    begun = time.process_time()
    told("a.html", b"<meta " * 50_000)
    aliases = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 10) if n else 'a'}]\n" for n in range(9))
    title, _, _ = told("a.md", f"---\n{aliases}title: *k8\n---\ntext\n".encode())
    assert time.process_time() - begun < 5
    assert len(title) < 100
