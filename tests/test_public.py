"""Public names are chosen, and what the documentation shows runs."""

import importlib
import importlib.util
import re
from pathlib import Path
from typing import get_origin

import pytest

import shoulders

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def test_public_names_are_deliberate():
    assert set(shoulders._HOMES) == set(shoulders.__all__)
    for name in shoulders.__all__:
        value = getattr(shoulders, name)
        assert value.__doc__ or get_origin(value), name  # the name of a type has no docstring of its own
    imported = re.search(r"if TYPE_CHECKING:\n((?:    .+\n)+)", Path(shoulders.__file__).read_text()).group(1)
    assert set(re.findall(r"(\w+)(?:,|$)", re.sub(r".* import ", "", imported), re.MULTILINE)) == set(shoulders.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = shoulders.Nothing


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert version("shoulders") == shoulders.__version__


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def pages_with_code() -> list[Path]:
    """One page of each code: README and home page show the same."""
    return list({tuple(blocks): page for page in PAGES if (blocks := python_blocks(page))}.values())


@pytest.mark.weights
@pytest.mark.parametrize("page", pages_with_code(), ids=lambda page: page.name)
def test_documented_code_runs(page, tmp_path, monkeypatch):
    """The Python of a page, in order, in one namespace, as a reader would type it."""
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(python_blocks(page)), str(page), "exec"), {"__name__": "docs"})


def test_documented_commands_exist():
    """Every `shoulders COMMAND` of the documentation is one, with recipes and values that exist."""
    from shoulders.cli.main import COMMANDS
    from shoulders.runs.ranking_recipes import ranking_recipes
    from shoulders.runs.recipe import with_overrides
    from shoulders.runs.registry import recipe_named

    known = {name for some in COMMANDS.values() for name in some}
    seen = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", "")  # long commands go on in the next line
        for line in re.findall(r"^(?:\$ )?shoulders (.+)$", text, re.MULTILINE):
            words = line.split("#")[0].split()
            assert words[0] in known | {"--help"}, line
            seen.add(words[0])
            trains = words[0] in {"train", "plan", "sweep"} and words[:2] != ["plan", "index"]
            if trains and not words[1].endswith(".json"):
                overrides = [word for word in words[2:] if re.match(r"[a-z_.]+=", word)]
                if words[0] == "sweep":  # the first value of each grid
                    overrides = [word.split(",")[0] for word in overrides]
                rival = ["rival.kind=lora"] if "--rival" in words else []
                with_overrides(ranking_recipes().get(words[1]) or recipe_named(words[1]), [*rival, *overrides])
    assert {"train", "evaluate", "ask", "report", "plan"} <= seen


def test_documented_names_and_files_exist():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"(?:`|^::: )(shoulders(?:\.[A-Za-z_]+)+)(?=`|\(|$)", text, re.MULTILINE):
            assert exists(name), f"{page.name}: {name}"
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, _, last = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), last) or bool(importlib.import_module(name))
    except ModuleNotFoundError:
        return False


def test_lines_of_prose_are_short():
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        lines = page.read_text(encoding="utf-8").splitlines()
        long = [line for line in lines if len(line) > 120 and not line.startswith("|")]  # rows of a table do not wrap
        assert not long, f"{page.name}: {long[0]}"


def test_every_module_is_documented():
    for path in (ROOT / "src" / "shoulders").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        if path.name == "vllm_model.py" and not importlib.util.find_spec("vllm"):
            continue  # it is imported inside vLLM
        if path.name != "__main__.py":
            assert importlib.import_module(name).__doc__, name


def test_files_are_short():
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, path
