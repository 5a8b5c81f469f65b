from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoulders.data.templates import Template, read_templates
from shoulders.errors import TemplateFailed

YAML = """
dataset: toys
templates:
  11111111-1111-1111-1111-111111111111: !Template
    answer_choices: No ||| Yes
    id: 11111111-1111-1111-1111-111111111111
    jinja: "Is {{thing}} alive? ||| {{answer_choices[label]}}"
    metadata: !TemplateMetadata
      choices_in_prompt: false
      languages:
      - en
      metrics:
      - Accuracy
      original_task: true
    name: alive
    reference: ''
  22222222-2222-2222-2222-222222222222: !Template
    answer_choices: null
    id: 22222222-2222-2222-2222-222222222222
    jinja: "{% if label %}What is {{thing}}? ||| {{kind}}{% endif %}"
    metadata: !TemplateMetadata
      choices_in_prompt: null
      languages: []
      metrics: []
      original_task: false
    name: what
    reference: ''
"""


def template(jinja: str, choices: str | None = None) -> Template:
    return Template("t", "id", jinja, choices)


def test_promptsource_yaml_is_read_as_it_is(tmp_path):
    path = tmp_path / "templates.yaml"
    path.write_text(YAML)
    alive, what = read_templates(path)
    assert (alive.name, alive.metrics, alive.original_task) == ("alive", ("Accuracy",), True)
    assert (what.name, what.metrics, what.original_task, what.answer_choices) == ("what", (), False, None)
    rendered = alive.render({"thing": "a tree", "label": 1}, "0")
    assert (rendered.text, rendered.target, rendered.choices) == ("Is a tree alive?", "Yes", ("No", "Yes"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_templates_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "templates.yaml").write_bytes(YAML.encode(encoding))
    assert [template.name for template in read_templates(tmp_path / "templates.yaml")] == ["alive", "what"]
    (tmp_path / "templates.yaml").write_bytes(f"{YAML}\n# é".encode("latin-1"))
    with pytest.raises(TemplateFailed, match="is not a PromptSource template file: it is not UTF-8"):
        read_templates(tmp_path / "templates.yaml")


def test_a_template_that_is_not_meant_for_a_record_renders_nothing(tmp_path):
    path = tmp_path / "templates.yaml"
    path.write_text(YAML)
    what = read_templates(path)[1]
    assert what.render({"thing": "a rock", "kind": "mineral", "label": 0}, "0") is None
    assert what.render({"thing": "a rock", "kind": "mineral", "label": 1}, "0").target == "mineral"


@pytest.mark.parametrize(
    "text", ["not: [yaml", "templates: 3", "a: 1", "templates:\n  x: !!python/object/apply:os.system ['true']"]
)
def test_other_yaml_is_refused_and_never_run(tmp_path, text):
    path = tmp_path / "templates.yaml"
    path.write_text(text)
    with pytest.raises(TemplateFailed, match="not a PromptSource template file"):
        read_templates(path)


def test_the_separator_in_the_data_does_not_separate():
    found = template("{{text}} and {{more.inner[0]}} ||| {{text}}").render(
        {"text": "a ||| b", "more": {"inner": ["c|||d"]}}, "0"
    )
    assert found.text == "a ||| b and c|||d"
    assert found.target == "a ||| b"


def test_helper_functions_of_promptsource():
    record = {"items": ["x", "y", "x", "y", "z"], "other": [1, 2, 3, 4, 5]}
    found = template(
        "{{items | most_frequent | join('+')}} {{ most_frequent(items) | length }} {{'w' | highlight}} "
        "{% for a, b in zip(items, other) %}{{a}}{{b}}{% endfor %} ||| {{ items | choice }}{{ choice(other) }}"
    ).render(record, "seed")
    assert found.text.startswith("x+y 2 <span style='color: #F08080'>w</span> x1y2x3y4z5")
    assert found.target[0] in "xyz"


def test_random_wordings_are_the_same_every_time_and_differ_between_records():
    drawn = template("q ||| {{ ['a','b','c','d','e','f','g','h'] | choice }}")
    first = [drawn.render({}, str(seed)).target for seed in range(30)]
    assert first == [drawn.render({}, str(seed)).target for seed in range(30)]
    assert len(set(first)) > 4


@pytest.mark.parametrize(
    ("jinja", "choices", "message"),
    [
        ("{{missing}} ||| x", None, "'missing' is undefined"),
        ("{{ 1 // 0 }} ||| x", None, "ZeroDivisionError"),
        ("no target", None, "no target"),
        ("q ||| {{empty}}", None, "empty target"),
        ("{{empty}} ||| a", None, "empty input"),
        ("q ||| E", "A ||| B", "target 'E' is not among its answer choices"),
        ("q ||| A ||| B", None, "it has 3 parts"),
        ("q ||| A", "A ||| B ||| ", "is empty"),
        ("{% if %} ||| x", None, "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }} ||| x", None, "SecurityError"),
    ],
)
def test_what_is_wrong_with_a_template_is_said(jinja, choices, message):
    with pytest.raises(TemplateFailed, match=message):
        template(jinja, choices).render({"empty": ""}, "0")


def test_rendering_does_not_change_the_record():
    record = {"fields": {"a": 1}}
    found = template("{% set _ = fields.update({'a': 2}) %}{{fields.a}} ||| x").render(record, "0")
    assert found.text == "2"
    assert record == {"fields": {"a": 1}}


def test_the_bundled_templates_are_such_files():
    from shoulders.data.readers import bundled_folder

    files = sorted(bundled_folder().glob("*/templates.yaml"))
    assert files
    assert all(read_templates(Path(file)) for file in files)


def test_pipes_in_answer_choices_separate_nothing():
    found = template("q ||| {{answer_choices[0]}}", "{{x}} ||| c").render({"x": "p ||| q"}, "0")
    assert (found.target, found.choices) == ("p ||| q", ("p ||| q", "c"))


@pytest.mark.parametrize(("text", "shown"), [("5", "5"), ("no", "False"), ("[a, b]", r"\['a', 'b'\]")])
def test_answer_choices_that_are_no_text_are_named(tmp_path, text, shown):
    path = tmp_path / "templates.yaml"
    path.write_text(YAML.replace("No ||| Yes", text))
    with pytest.raises(TemplateFailed, match=f"answer_choices of template 'alive' is {shown}, not text"):
        read_templates(path)


def test_random_is_drawn_by_the_seed_and_nothing_else_is_drawn_at_all():
    """Jinja's own filter, as `choice`."""
    drawn = template("{{ ['a','b','c','d','e','f','g','h'] | random }} ||| {{ x | random }}")
    first = [drawn.render({"x": ["p", "q"]}, str(seed)) for seed in range(30)]
    assert first == [drawn.render({"x": ["p", "q"]}, str(seed)) for seed in range(30)]
    assert len({one.text for one in first}) > 4
    with pytest.raises(TemplateFailed, match="'lipsum' is undefined"):
        template("{{ lipsum() }} ||| x").render({}, "0")


@given(st.sets(st.sampled_from("abc")), st.text("abc", min_size=1, max_size=1))
@example(set(), "a")
def test_a_condition_on_an_absent_field_is_false_and_printing_it_fails(present, asked):
    """Any template over any part of its fields."""
    record = {name: name.upper() for name in present}
    condition = template(
        f"{{% if {asked} %}}has{{% elif not {asked} %}}lacks{{% endif %}} ||| {{{{ {asked} or '-' }}}}"
    )
    found = condition.render(record, "0")
    assert (found.text, found.target) == (("has", asked.upper()) if asked in present else ("lacks", "-"))
    for used in (
        "{{ %s }} ||| x",
        "q ||| {{ %s }}",
        "{%% for x in %s %%}{{x}}{%% endfor %%} q ||| x",
        "{{ %s.in }} ||| x",
    ):
        if asked not in present:
            with pytest.raises(TemplateFailed, match=f"'{asked}' is undefined"):
                template(used % asked).render(record, "0")


@given(st.integers(-9, 9), st.sampled_from(["answer_choices[label]", "['x', 'y'][label]", "answer_choices[0 + label]"]))
@example(-1, "answer_choices[label]")
def test_a_label_takes_its_own_choice_or_none(label, jinja):
    """-1 says that the label is hidden; Python would take the last choice for it."""
    rendered = template(f"q ||| {{{{ {jinja} }}}}", "x ||| y")
    if label in {0, 1}:
        assert rendered.render({"label": label}, "0").target == "xy"[label]
    else:
        said = "a negative label means that the answer is hidden" if label < 0 else "has no element"
        with pytest.raises(TemplateFailed, match=said):
            rendered.render({"label": label}, "0")


def test_a_template_may_count_from_the_end_itself():
    found = template("{{ words[-1] }} {{ words[-2:][0] }} {{ by[-1] }} ||| {{ text.split()[-1] }}")
    record = {"words": ["a", "b", "c"], "by": {-1: "minus"}, "text": "p q"}
    assert (found.render(record, "0").text, found.render(record, "0").target) == ("c b minus", "q")
    assert template("q ||| {{ {-1: 'hidden', 0: 'no'}[label] }}").render({"label": -1}, "0").target == "hidden"


@given(st.one_of(st.lists(st.text(max_size=4)), st.dictionaries(st.text(max_size=3), st.integers()), st.none()))
def test_what_is_no_text_is_no_target(value):
    """A list is never taught as Python writes it; in an input it stands as PromptSource has it."""
    for jinja in ("q ||| {{ value }}", "q ||| It is {{ value }}.", "q ||| {{ value | upper }}{{ value }}"):
        with pytest.raises(TemplateFailed, match="is not text but a list, an object or null"):
            template(jinja).render({"value": value}, "0")
    with pytest.raises(TemplateFailed, match=r"its answer choice .* is not text"):
        template("q ||| a", "a ||| {{ value }}").render({"value": value}, "0")
    found = template("In {{ value }} ||| {{ (value or ['x']) | length }}").render({"value": value}, "0")
    assert found.text.split() == f"In {value}".split()


@pytest.mark.parametrize(("text", "names"), [("ROUGE", ("ROUGE",)), ("ROUGE, Trivia QA", ("ROUGE", "Trivia QA"))])
def test_metrics_may_be_one_text(tmp_path, text, names):
    path = tmp_path / "templates.yaml"
    path.write_text(YAML.replace("metrics:\n      - Accuracy", f"metrics: {text}").replace("name: what", "name: 5"))
    assert [(one.name, one.metrics) for one in read_templates(path)] == [("5", ()), ("alive", names)]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("metrics:\n      - Accuracy", "metrics: [1]", r"metrics of template 'alive' are \[1\]: they must be names"),
        ("metrics:\n      - Accuracy", "metrics: 5", "not iterable"),
        (
            "original_task: true",
            "original_task: 'no'",
            "original_task of template 'alive' is 'no': it must be true or false",
        ),
    ],
)
def test_metadata_of_another_kind_is_named(tmp_path, old, new, said):
    path = tmp_path / "templates.yaml"
    path.write_text(YAML.replace(old, new))
    with pytest.raises(TemplateFailed, match=said):
        read_templates(path)
