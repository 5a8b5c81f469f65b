"""The templates of each task, as PromptSource has them: Jinja that renders a record into `input ||| target`."""

from dataclasses import dataclass

from scripts.bundled_suite.tasks_words import TOPICS

LISTED = "{{ choices | join('|||') }}"  # the record's own choices
LETTERS = "A ||| B ||| C ||| D"
NAMES = tuple(topic.name for topic in TOPICS)
TOPIC_NAMES = " ||| ".join(NAMES)

RIGHT = "{{ choices[label] }}"
LABEL = "{{ answer_choices[label] }}"
FIRST = "{{ answers[0] }}"
SPAN = "{{ answers['text'][0] }}"

# What several wordings share, by the name that stands for it in their texts.
SHARED = {
    "<list>": "- {{ choices | join('\\n- ') }}",
    "<inline>": "{{ choices[:-1] | join(', ') }} or {{ choices[-1] }}",
    "<lettered>": "{% for choice in choices %}{{ answer_choices[loop.index0] }}. {{ choice }}\n{% endfor %}",
    "<topics>": f"{', '.join(NAMES[:-1])}, or {NAMES[-1]}",
    "<rows>": "{% for field in fields %}{{ field.key }}: {{ field.value }}\n{% endfor %}",
    "<pairs>": "{% for field in fields[1:] %}{{ field.key }} = {{ field.value }}"
    "{% if not loop.last %}; {% endif %}{% endfor %}",
}


@dataclass(frozen=True, slots=True)
class Wording:
    """One template.

    Attributes:
        name: unique in its task; the template's id is made from both.
        text: the input, with names of `SHARED` in it.
        target: what is to be answered.
        choices: the closed set of answers, or None.
        listed: whether the input lists them.
    """

    name: str
    text: str
    target: str
    choices: str | None = None
    listed: bool = False

    @property
    def jinja(self) -> str:
        """Input and target."""
        text = self.text
        for name, source in SHARED.items():
            text = text.replace(name, source)
        return f"{text} ||| {self.target}"


WORDINGS: dict[str, tuple[Wording, ...]] = {
    "country_facts": (
        Wording("question_only", "{{ question }}", FIRST),
        Wording("question_and_answer", "Question: {{ question }}\nAnswer:", FIRST),
        Wording("short_answer", "Give a short answer from what you know of the world.\n\n{{ question }}", FIRST),
        Wording("record_card", "Country: {{ country }}\nAsked for: {{ relation }}\nComplete the card:", FIRST),
        Wording("quiz", "In a geography quiz you are asked: {{ question }} You say:", FIRST),
    ),
    "capital_choice": (
        Wording("options", "What is the capital of {{ country }}?\n\nOptions:\n<list>", RIGHT, LISTED, True),
        Wording("inline", "Is the capital of {{ country }} <inline>?", RIGHT, LISTED, True),
        Wording(
            "letters",
            "Which of these cities is the capital of {{ country }}?\n<lettered>Answer with a letter:",
            LABEL,
            LETTERS,
            True,
        ),
        Wording("without_options", "The capital of {{ country }} is the city of", RIGHT, LISTED),
    ),
    "city_country": (
        Wording("options", "In which country is {{ city }}?\n\nChoices:\n<list>", RIGHT, LISTED, True),
        Wording("choices_first", "Choose between <inline>: where is the city of {{ city }}?", RIGHT, LISTED, True),
        Wording(
            "letters",
            "{{ city }} is a city. Which country is it in?\n<lettered>Letter:",
            LABEL,
            LETTERS,
            True,
        ),
        Wording(
            "without_options",
            "Question: Which country does the city of {{ city }} belong to?\nAnswer:",
            RIGHT,
            LISTED,
        ),
        Wording(
            "traveler",
            "A traveler arrives in {{ city }}. Name the country she is in now.",
            RIGHT,
            LISTED,
        ),
    ),
    "element_facts": (
        Wording("options", "{{ question }}\n\nOptions:\n<list>", RIGHT, LISTED, True),
        Wording(
            "options_first",
            "Possible answers: <inline>.\nQuestion on chemistry: {{ question }}",
            RIGHT,
            LISTED,
            True,
        ),
        Wording("letters", "{{ question }}\n<lettered>Correct letter:", LABEL, LETTERS, True),
        Wording(
            "exam",
            "Chemistry exam. Choose the right answer.\n\n{{ question }}\n<list>\n\nThe right answer is:",
            RIGHT,
            LISTED,
            True,
        ),
    ),
    "definition_choice": (
        Wording("which_word", 'Which word means "{{ definition }}"?\n\n<list>', RIGHT, LISTED, True),
        Wording(
            "words_first",
            "Here are four words: {{ choices | join(', ') }}. Which of them is defined as follows?\n{{ definition }}",
            RIGHT,
            LISTED,
            True,
        ),
        Wording("letters", "Definition: {{ definition }}\nWord:\n<lettered>Answer:", LABEL, LETTERS, True),
        Wording("crossword", "Crossword clue: {{ definition }}. What is the word?", RIGHT, LISTED),
    ),
    "fact_sheets": (
        Wording("passage_question", "{{ context }}\n\nQuestion: {{ question }}\nAnswer:", SPAN),
        Wording(
            "question_first",
            "Answer this question with words from the text: {{ question }}\n\nText: {{ context }}",
            SPAN,
        ),
        Wording(
            "copy_the_part",
            "Read the passage and copy the part that answers the question.\n\n"
            "Passage: {{ context }}\n\nQuestion: {{ question }}",
            SPAN,
        ),
        Wording("title_first", "{{ title }}\n\n{{ context }}\n\nAccording to the text above: {{ question }}", SPAN),
    ),
    "fact_inference": (
        Wording(
            "does_it_follow",
            '{{ premise }}\n\nDoes it follow that "{{ hypothesis }}"? Yes, no, or maybe?',
            LABEL,
            "Yes ||| No ||| Maybe",
            True,
        ),
        Wording(
            "true_false_neither",
            "{{ premise }}\nQuestion: {{ hypothesis }} True, False, or Neither?",
            LABEL,
            "True ||| False ||| Neither",
            True,
        ),
        Wording(
            "statement_first",
            "Statement: {{ hypothesis }}\nCompare it with this text, whatever you know besides: {{ premise }}\n"
            "By the text, is the statement right, wrong, or not mentioned?",
            LABEL,
            "right ||| wrong ||| not mentioned",
            True,
        ),
        Wording(
            "take_as_true",
            'Take the following as true: {{ premise }}\nThen the claim "{{ hypothesis }}" is',
            LABEL,
            "certainly true ||| certainly false ||| undecided",
        ),
    ),
    "kind_of": (
        Wording("is_it", 'Is "{{ word }}" a word for a kind of {{ kind }}? Yes or no?', LABEL, "No ||| Yes", True),
        Wording(
            "true_or_false",
            'True or false: the word "{{ word }}" names a kind of {{ kind }}.',
            LABEL,
            "False ||| True",
            True,
        ),
        Wording(
            "heading",
            'A word list is sorted under headings. Does the noun "{{ word }}" belong under the heading "{{ kind }}"?',
            LABEL,
            "no ||| yes",
        ),
        Wording(
            "does_it_follow",
            'Someone mentions the word "{{ word }}", in its usual sense.\n'
            "Does it follow that they speak of some kind of {{ kind }}? Answer yes or no:",
            LABEL,
            "no ||| yes",
            True,
        ),
    ),
    "question_pairs": (
        Wording(
            "same_thing",
            "Question 1: {{ question1 }}\nQuestion 2: {{ question2 }}\n\n"
            "Do these two questions ask for the same thing? Yes or no?",
            LABEL,
            "No ||| Yes",
            True,
        ),
        Wording(
            "duplicates",
            '"{{ question1 }}" and "{{ question2 }}": are these questions duplicates or different?',
            LABEL,
            "different ||| duplicates",
            True,
        ),
        Wording(
            "one_answer",
            'Someone has answered the question "{{ question1 }}" Does the same answer serve for "{{ question2 }}"?',
            LABEL,
            "no ||| yes",
        ),
        Wording(
            "paraphrase",
            "Is the second question a paraphrase of the first?\n1. {{ question1 }}\n2. {{ question2 }}\n"
            "Answer true or false:",
            LABEL,
            "false ||| true",
            True,
        ),
    ),
    "gloss_topics": (
        Wording("describes", "{{ definition }}\n\nWhat does this describe: <topics>?", LABEL, TOPIC_NAMES, True),
        Wording(
            "categories_first",
            f"Categories: {', '.join(NAMES)}\n\nDefinition: {{{{ definition }}}}\nCategory:",
            LABEL,
            TOPIC_NAMES,
            True,
        ),
        Wording(
            "without_options",
            'In a few words, what sort of thing is meant by "{{ definition }}"?',
            LABEL,
            TOPIC_NAMES,
        ),
        Wording(
            "picture_dictionary",
            'A picture dictionary is sorted by subjects. The entry "{{ definition }}" stands under the subject',
            LABEL,
            TOPIC_NAMES,
        ),
    ),
    "gloss_endings": (
        Wording("complete", "Complete the sentence: {{ stem }} ...\n\n<list>", RIGHT, LISTED, True),
        Wording("letters", "{{ stem }} ...\n<lettered>Which ending fits?", LABEL, LETTERS, True),
        Wording("continuation", "{{ stem }}", RIGHT, LISTED),
        Wording("explain", 'Explain in one sentence what the word "{{ word }}" means. {{ stem }}', RIGHT, LISTED),
    ),
    "fact_sentences": (
        Wording("table", "<rows>\nWrite this as running text:", FIRST),
        Wording(
            "describe",
            "Describe the {{ fields[0].key }} {{ fields[0].value }} in one to three sentences, "
            "using these facts: <pairs>.",
            FIRST,
        ),
        Wording("data", "Data: {{ fields[0].value }} (<pairs>)\nSentences:", FIRST),
        Wording("all_details", "Put all of the following details into full sentences.\n\n<rows>", FIRST),
    ),
}
