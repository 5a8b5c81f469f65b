"""From a conversation to token ids by the tokenizer's chat template, with the places where a prompt may stand.

The template is rendered once for each sequence of roles, with a mark in the place of each text. Texts are filled in
afterwards, so that nothing in them can change what the template writes. What the template writes is read with its
special tokens; special tokens that are spelled out in a text stay text.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from shoulders.backbone.tokenizing import tokenized
from shoulders.errors import UsageError, first_line
from shoulders.records import Chat, Message, Question, Tokenised

if TYPE_CHECKING:
    from shoulders.backbone.frozen import FrozenLM

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
# Thinking models answer at once. Some templates write today's date unless they are given one; the same question is to
# be read in the same way tomorrow, so they get the date that Llama 3.1's template has by default.
SETTINGS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
SPACE = "\x0b"  # white space that no template writes: it is gone where a template strips the text of a message
MARK = re.compile(f"({SPACE}?)\ue000([0-9]+)\ue001({SPACE}?)")


@dataclass(frozen=True, slots=True)
class _Layout:
    """A rendered conversation without the texts of its messages.

    Attributes:
        fixed: what the template writes before, between and after the texts.
        texts: for each text in its order, the number of the message, and whether its left and right ends are stripped.
    """

    fixed: Sequence[str]
    texts: Sequence[tuple[int, bool, bool]]

    def filled(self, contents: Sequence[str]) -> tuple[str, dict[int, tuple[int, int]]]:
        """Return the whole text, and where the text of each message begins and ends in it."""
        whole, spans = self.fixed[0], {}
        for (number, left, right), after in zip(self.texts, self.fixed[1:], strict=True):
            text = contents[number].lstrip() if left else contents[number]
            text = text.rstrip() if right else text
            spans[number] = len(whole), len(whole) + len(text)
            whole += text + after
        return whole, spans


@final
class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: one that reads special tokens in a text as text (`tokenizing.keep_text`).
        rows: number of the model's embeddings.
        name: of the model, for messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
        self._tokenizer, self._rows, self._name = tokenizer, rows, name
        self._layouts: dict[tuple[str, ...], _Layout] = {}

    def read(self, question: Question) -> Tokenised:
        """Return the token ids of a question in its conversation, and the numbers of tokens before its parts.

        Raises:
            UsageError: the template refuses a role or leaves a message out, or a text cannot be tokenised.
        """
        chat = question.chat or Chat()
        contents = [*(one.content for one in chat.before), question.whole]
        roles = (*(one.role for one in chat.before), USER)
        text, spans = self._layout(roles).filled(contents)
        ids, starts = self._ids(text, [*spans.values()])
        first, last = spans[len(contents) - 1]
        stripped = question.whole.index(text[first:last])  # characters before the text that the template keeps
        asked = min(last, max(first, first + len(question.evidence) - stripped))
        begin = spans[roles.index(SYSTEM) if SYSTEM in roles else 0][0]
        prefix, infix, suffix = (bisect_left(starts, place) for place in (begin, asked, last))
        return Tokenised(question.whole, tuple(ids), question.chat, prefix, infix, len(ids) - suffix)

    def answer_ids(self, answer: str) -> list[int]:
        """Return the token ids of an answer as the message that follows a question, without the end of its turn."""
        opening, lead, _ = self._turn
        before, _ = self._ids(opening, [])
        start = len(opening + lead)
        whole, _ = self._ids(opening + lead + answer, [(start, start + len(answer))])
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return self._ids(lead + answer, [(len(lead), len(lead + answer))])[0]

    @property
    def end(self) -> int | None:
        """Token that ends an answer in the template; None if it ends them by text, or takes no answers."""
        return self._turn[2]

    @cached_property
    def _turn(self) -> tuple[str, str, int | None]:
        """The text after a question that an answer follows, further text before the answer, and its end token."""
        opening = self._layout((USER,)).fixed[-1]
        try:
            _, between, after = self._layout((USER, ASSISTANT), answered=True).fixed
        except UsageError:
            return opening, "", None
        lead = between.removeprefix(opening) if between.startswith(opening) else ""
        end = self._control and re.match("|".join(map(re.escape, self._control)), after)
        return opening, lead, self._tokenizer.convert_tokens_to_ids(end[0]) if end else None

    @cached_property
    def _control(self) -> list[str]:
        """Tokens that structure a conversation, the longest first: special ones, and those that the template writes."""
        source = str(self._tokenizer.get_chat_template())
        added = self._tokenizer.added_tokens_decoder.values()
        written = {str(one) for one in added if one.special or (str(one) in source and not str(one).isspace())}
        return sorted(written | set(map(str, self._tokenizer.all_special_tokens)), key=len, reverse=True)

    @cached_property
    def _cuts(self) -> re.Pattern[str]:
        """The first character of each such token that is spelled out in a text."""
        ends: dict[str, list[str]] = {}
        for token in self._control:
            if len(token) > 1:
                ends.setdefault(token[0], []).append(re.escape(token[1:]))
        return re.compile("|".join(f"{re.escape(one)}(?={'|'.join(some)})" for one, some in ends.items()) or "(?!)")

    @cached_property
    def _reader(self) -> PreTrainedTokenizerBase:
        """The tokenizer, set to find special tokens; a copy, because both are in use at once."""
        if not self._tokenizer.is_fast:
            raise UsageError(
                f"{self._name!r} has a slow tokenizer ({type(self._tokenizer).__name__}), which does not say where its "
                "tokens begin: a chat template needs a fast one, or leave backbone.chat=false"
            )
        reader = deepcopy(self._tokenizer)
        reader.split_special_tokens = False
        return reader

    def _layout(self, roles: tuple[str, ...], *, answered: bool = False) -> _Layout:
        """Return the conversation of these roles without its texts, with the beginning of an answer unless it has one.

        Raises:
            UsageError: the template refuses a role, or leaves a message out.
        """
        if roles not in self._layouts:
            marked = [{"role": role, "content": f"{SPACE}\ue000{n}\ue001{SPACE}"} for n, role in enumerate(roles)]
            try:
                text = str(
                    self._tokenizer.apply_chat_template(
                        marked, tokenize=False, add_generation_prompt=not answered, **SETTINGS
                    )
                )
            except (TemplateError, TypeError, ValueError, LookupError) as error:
                raise self._refused(roles, f": {first_line(error)}") from error
            parts = MARK.split(text)
            numbers = [int(number) for number in parts[2::4]]
            for number, role in enumerate(roles):
                if numbers.count(number) != 1:
                    raise self._refused(roles, f": it writes the text of the {role} {numbers.count(number)} times")
            ends = zip(numbers, parts[1::4], parts[3::4], strict=True)
            self._layouts[roles] = _Layout(parts[::4], [(n, not left, not right) for n, left, right in ends])
        return self._layouts[roles]

    def _refused(self, roles: Sequence[str], why: str) -> UsageError:
        way_out = (
            "leave the system text out (backbone.system=), or say it in the question"
            if SYSTEM in roles
            else "let users and assistant take turns"
        )
        return UsageError(f"the chat template of {self._name!r} refuses messages of {', '.join(roles)}{why}; {way_out}")

    def _ids(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """Return the token ids of a rendered text, and where in it each of them begins.

        Args:
            spans: the parts that users wrote, which are cut after the first character of a special token in them.
        """
        cuts = sorted(found.end() for first, last in spans for found in self._cuts.finditer(text, first, last))
        ids: list[int] = []
        starts: list[int] = []
        for first, last in pairwise([0, *cuts, len(text)]):
            some, begins = self._piece(text[first:last], first, continued=first > 0)
            ids += some
            starts += begins
        return ids, starts

    def _piece(self, text: str, at: int, *, continued: bool) -> tuple[list[int], list[int]]:
        """Return the token ids of a piece of a text from `at` on, and where they begin.

        A piece in the middle is read after a line end: SentencePiece writes a space before the first word of a text.
        """
        lead = "\n" if continued else ""
        found = tokenized(self._reader, self._rows, lead + text, add_special_tokens=False, return_offsets_mapping=True)
        places = [(first, last) for first, last in found.offset_mapping]
        if lead and any(first < 1 < last for first, last in places):
            return self._piece(text, at, continued=False)
        kept = [number for number, (_, last) in enumerate(places) if not lead or last > len(lead)]
        return [found.input_ids[number] for number in kept], [at + places[number][0] - len(lead) for number in kept]


def template_of(lm: "FrozenLM") -> ChatTemplate:
    """Return the chat template of a model.

    Raises:
        UsageError: its tokenizer has none.
    """
    if lm.template is None:
        raise UsageError(
            f"the tokenizer of {lm.name!r} has no chat template: ask it without one (backbone.chat=false, chat=False), "
            "or name a chat model"
        )
    return lm.template


def check_chat(chat: Chat | None, lm: "FrozenLM") -> None:
    """Raise `UsageError` if a question could not be read in such a conversation."""
    if chat is not None:
        template_of(lm).read(Question("Why?", chat=chat))


def conversation(messages: Sequence[Message], evidence: str = "") -> Question:
    """Return the last message of a conversation as a question that is read after the others.

    Args:
        evidence: text that is read before the question, in the same message.

    Raises:
        UsageError: there is no message, or the last one is not the user's.
    """
    if not messages or messages[-1].role != USER:
        last = f"the last is the {messages[-1].role}'s" if messages else "there is none"
        raise UsageError(f"a conversation ends with the message of the user that is answered, and {last}")
    return Question(messages[-1].content, evidence=evidence, chat=Chat(tuple(messages[:-1])))
