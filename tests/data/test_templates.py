from pathlib import Path

import pytest

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
