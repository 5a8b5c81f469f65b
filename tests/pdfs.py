"""Small PDFs, written by hand."""

# Character 1 is the ligature U+FB01, 2 is U+FB03, 3 a soft hyphen.
TABLE = b"""/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <ff> endcodespacerange
3 beginbfchar <01> <fb01> <02> <fb03> <03> <00ad> endbfchar
1 beginbfrange <20> <7e> <0020> endbfrange endcmap end"""


def save_pdf(path, pages, broken=()):
    """Pages of lines of text; the content of those in `broken` is packed by a filter that there is none of."""
    objects = {1: b"<</Type/Catalog/Pages 2 0 R>>", 3: b"<</Length %d>>stream\n%s\nendstream" % (len(TABLE), TABLE)}
    kids = b" ".join(b"%d 0 R" % (5 + 2 * number) for number in range(len(pages)))
    objects[2] = b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(pages))
    objects[4] = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/ToUnicode 3 0 R>>"
    for number, lines in enumerate(pages):
        at, packed = 5 + 2 * number, b"/Filter/Unknown" if number in broken else b""
        shown = b" 0 -20 Td ".join(b"(%s) Tj" % line.encode("latin-1") for line in lines)
        content = b"BT /F1 12 Tf 20 200 Td %s ET" % shown
        objects[at] = (
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 300]/Contents %d 0 R/Resources<</Font<</F1 4 0 R>>>>>>"
            % (at + 1)
        )
        objects[at + 1] = b"<</Length %d%s>>stream\n%s\nendstream" % (len(content), packed, content)
    written, places = b"%PDF-1.4\n", []
    for number in sorted(objects):
        places.append(len(written))
        written += b"%d 0 obj%s endobj\n" % (number, objects[number])
    size = len(objects) + 1
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer<</Root 1 0 R/Size %d>>\nstartxref\n%d\n%%%%EOF" % (size, len(written))
    path.write_bytes(written + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + end)
