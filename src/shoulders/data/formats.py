"""Records of questions in the formats that data sets publish, converted to one form.

The form has `question`, `answers` (all correct ones), `answer` (the one that training teaches) and, if the data set has
them, `id` and `gold_passage_ids`:

| data set      | recognised by            | question  | answers (the first is taught)                | id          |
| ------------- | ------------------------ | --------- | -------------------------------------------- | ----------- |
| TriviaQA      | Question, Answer         | Question  | Answer.Value, .Aliases, .HumanAnswers        | QuestionId  |
| WebQuestions  | utterance, targetValue   | utterance | each description in targetValue              | url         |
| SQuAD 1.1, 2  | paragraphs' qas          | question  | answers[].text; impossible ones are refused  | id          |
| HotpotQA      | question, answer, _id    | question  | answer                                       | _id         |
| DPR retriever | question, positive_ctxs  | question  | answers                                      | question_id |
| KILT          | input, output            | input     | output[].answer                              | id          |
| BEIR          | queries.jsonl and qrels/ | text      | none: documents are annotated, not answers   | _id         |
| NQ-open, own  | anything else            | question  | `answer`, if there is one, then `answers`    | id          |

`gold_passage_ids` is the field of that name; in DPR's files, the passage_id (or psg_id) of each of positive_ctxs; in
BEIR's, the documents with a score above 0 in qrels. Records of the last row of the table keep their other fields.

An answer is the same in all formats (`texts_of`): a text, a number, a list of them, or an object as in TriviaQA
(`value`, `aliases`), SQuAD (`text`) and KILT (`answer`). Anything else is an error that names the field.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shoulders.errors import BadRow, DataError

Row = Mapping[str, Any]

GOLD = "gold_passage_ids"  # field with the ids of the annotated documents
PLACES = {
    "Data": "Data.item",
    "data": "data.item.paragraphs.item.qas.item",
}  # path of the questions in TriviaQA's and SQuAD's files, by their first field
ALIASES = (
    ("value", "Value"),
    ("aliases", "Aliases"),
    ("HumanAnswers",),
    ("text",),
    ("answer",),
)  # fields of an answer that is an object
DESCRIPTION = re.compile(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()"]+))\)')


def question_record(row: Row) -> dict[str, Any]:
    """Convert a record of any of the formats; raise `ValueError` that names a wrong field."""
    if {"Question", "Answer"} <= set(row):
        return _triviaqa(row)
    if {"utterance", "targetValue"} <= set(row):
        return _web_questions(row)
    if {"question", "positive_ctxs"} <= set(row):
        return _dpr(row)
    if {"input", "output"} <= set(row) and "question" not in row:
        return _record(row["input"], texts_of(row["output"], "output"), row.get("id"))
    if row.get("is_impossible") is True:
        raise ValueError("`answers`: the question is marked as impossible to answer (is_impossible)")
    return _own(row)


def is_triviaqa(row: Row) -> bool:
    """Return whether a record is TriviaQA's, in its published form or the hub's."""
    return "Answer" in row or (isinstance(row.get("answer"), Mapping) and "aliases" in row["answer"])


def _triviaqa(row: Row) -> dict[str, Any]:
    return _record(row["Question"], texts_of(row["Answer"], "Answer"), row.get("QuestionId"))


def _web_questions(row: Row) -> dict[str, Any]:
    descriptions = row["targetValue"] if isinstance(row["targetValue"], str) else ""
    found = [quoted.replace('\\"', '"') or plain for quoted, plain in DESCRIPTION.findall(descriptions)]
    if not found:
        raise ValueError("`targetValue` contains no (description ...)")
    return _record(row["utterance"], texts_of(found, "targetValue"), row.get("url"))


def _dpr(row: Row) -> dict[str, Any]:
    contexts = [one for one in row["positive_ctxs"] or () if isinstance(one, Mapping)]
    ids = [one.get("passage_id", one.get("psg_id")) for one in contexts]
    gold = [one for one in ids if id_of(one, "positive_ctxs") is not None]
    return _record(row["question"], texts_of(row.get("answers"), "answers"), row.get("question_id"), gold)


def _own(row: Row) -> dict[str, Any]:
    given = {field: row[field] for field in ("answer", "answers") if not _empty(row.get(field))}
    if not given:
        raise ValueError("it needs a `question` and its `answers`")
    answers = tuple(dict.fromkeys(text for field, value in given.items() for text in texts_of(value, field)))
    number = row.get("id") if "id" in row else row.get("_id")
    return {**row, **_record(row.get("question"), answers, number, row.get(GOLD))}


def _record(question: Any, answers: tuple[str, ...], number: Any, gold: Any = None) -> dict[str, Any]:
    asked = one_text(question, "question")
    if not asked:
        raise ValueError("it needs a `question`")
    found: dict[str, Any] = {"question": asked, "answers": list(answers), "answer": answers[0]}
    own, documents = id_of(number, "id"), ids_of(gold, GOLD)
    return {**found, **({"id": own} if own else {}), **({GOLD: list(documents)} if documents else {})}


def missing(value: Any) -> bool:
    """Return whether a value is missing: null, or NaN, which pandas writes instead."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _empty(value: Any) -> bool:
    return missing(value) or value in ("", [], {})


def texts_of(value: Any, field: str) -> tuple[str, ...]:
    """Return the distinct answers in a field, without blank ones.

    Raises:
        ValueError: there are none, or a value is not an answer; the message names the field.
    """
    items = value if isinstance(value, list | tuple) else [value]
    found = [text for item in items for text in _answer(item, field)]
    if not found:
        raise ValueError(f"`{field}` contains no answer")
    return tuple(dict.fromkeys(found))


def _answer(value: Any, field: str) -> Iterable[str]:
    if isinstance(value, Mapping):
        parts = [value[name] for names in ALIASES for name in names if not missing(value.get(name))]
        if not parts and "provenance" not in value:  # KILT has objects with only the provenance of an answer
            raise ValueError(f"`{field}` contains an object without a value, aliases, text or answer")
        return [text for part in parts for text in ([one_text(x, field) for x in _listed(part)]) if text]
    text = one_text(value, field)
    return [text] if text else []


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else [value]


def one_text(value: Any, field: str) -> str:
    """Return a text or number as text, stripped; "" if it is missing.

    Raises:
        ValueError: it is neither; the message names the field.
    """
    if missing(value):
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    found = "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"
    found = str(value).lower() if isinstance(value, bool | float) else found
    raise ValueError(f"`{field}` is {found}, neither text nor number")


def id_of(value: Any, field: str) -> str | None:
    """Return an id as text, 17.0 (as pandas writes 17) as "17"; None if it is missing or blank.

    Raises:
        ValueError: it is neither text nor number; the message names the field.
    """
    whole = isinstance(value, float) and value.is_integer()
    return one_text(int(value) if whole else value, field) or None


def ids_of(value: Any, field: str) -> tuple[str, ...]:
    """Return the distinct ids of a list, or a single id, as texts.

    Raises:
        ValueError: an id is neither text nor number; the message names the field.
    """
    found = [id_of(one, field) for one in _listed(value)]
    return tuple(dict.fromkeys(one for one in found if one is not None))


def beir_query(row: Row) -> dict[str, Any]:
    """Convert a line of BEIR's queries.jsonl; raise `ValueError` that names a wrong field."""
    asked, own = one_text(row.get("text"), "text"), id_of(row.get("_id"), "_id")
    if not asked or own is None:
        raise ValueError("it needs an `_id` and a `text`")
    return {"question": asked, "id": own}


def read_qrels(path: Path) -> dict[str, list[str]]:
    """Read the ids of the documents that are judged relevant (score above 0), by query.

    A line is BEIR's `query-id corpus-id score`, after a header, or TREC's `query-id iteration corpus-id score`,
    separated by tabs or spaces.

    Raises:
        BadRow: a line is neither; the message has file and line number.
        DataError: the file cannot be read.
    """
    found: dict[str, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        parts = line.split("\t") if "\t" in line else line.split()
        if not parts or (number == 1 and parts[0] == "query-id"):
            continue
        try:
            query, document, score = parts if len(parts) == 3 else (parts[0], *parts[2:])
            relevant = float(score) > 0
        except ValueError:
            raise BadRow(f"{path}, line {number}: not a query, a document and a score: {line[:60]!r}") from None
        if relevant:
            found.setdefault(query, []).append(document)
    return found
