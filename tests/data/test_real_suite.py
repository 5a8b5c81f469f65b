"""PromptSource's own templates on real data sets, where a folder of them is at hand (SHOULDERS_SUITE says where)."""

import os
from pathlib import Path

import pytest

from shoulders.data.readers import open_suite
from shoulders.data.tasks import DEV, TEST, TRAIN
from shoulders.errors import TemplateFailed
from shoulders.evaluation.metrics import metrics_for

SUITE = Path(os.environ.get("SHOULDERS_SUITE") or Path(__file__).parents[3] / "shared" / "data" / "suite")
LOOKED_AT = 40
# PromptSource's own defects. This one names the right answer of five by letter, and lists four letters.
BROKEN = {"commonsense_qa/question_to_answer_index"}

pytestmark = pytest.mark.skipif(not SUITE.is_dir(), reason="no folder of real data sets at hand")


@pytest.mark.parametrize("name", sorted(path.parent.name for path in SUITE.glob("*/templates.yaml")))
def test_every_template_renders_its_data_set(name):
    (task,) = open_suite(str(SUITE), [name])
    assert any(task.original(wording) for wording in task.wordings)
    failed = set()
    for split in (TRAIN, DEV, TEST):
        for wording in task.wordings:
            rendered = []
            for row in range(min(LOOKED_AT, task.rows(split, wording))):
                try:
                    rendered.append(task.example(split, wording, row))
                except TemplateFailed:
                    failed.add(f"{name}/{wording}")
            examples = [example for example in rendered if example is not None]
            if task.original(wording):
                assert examples, f"{wording} renders nothing of {split}"
            for example in examples:
                assert example.question.text
                assert example.target in (example.choices or example.references)
                assert metrics_for(task.metrics(wording), choices=example.choices is not None)
    assert failed == BROKEN & {f"{name}/{wording}" for wording in task.wordings}
