"""The named recipes."""

from collections.abc import Callable

from shoulders.errors import UnknownName, UsageError
from shoulders.recipes import closed_book, paper, reader, small
from shoulders.recipes.ranking import ranking_recipes
from shoulders.recipes.recipe import Recipe

MAKERS: tuple[Callable[[], Recipe], ...] = (
    small.bundled_soft_prompt,
    small.bundled_input_prompt,
    small.suite_soft_prompt,
    small.suite_input_prompt,
    small.bundled_recursion,
    small.text_recursion,
    closed_book.closed_book,
    closed_book.connector_lm,
    closed_book.lm_connector,
    closed_book.lm_connector_lm,
    closed_book.textual_recursion,
    reader.reader,
    paper.paper_prompt_tuning,
    paper.paper_idpt,
    paper.paper_closed_book,
    paper.paper_reader,
    paper.paper_textual_recursion,
    paper.paper_recursion,
)


def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    return {recipe.name: recipe for recipe in (make() for make in MAKERS)}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UnknownName: there is none; the nearest is suggested.
        UsageError: it is one that orders passages.
    """
    known = recipes()
    if name in ranking_recipes():
        raise UsageError(
            f"the recipe {name} orders passages and has no language model: shoulders train {name}, or name a reader's "
            "recipe here"
        )
    if name not in known:
        raise UnknownName("recipe", name, [*known, *ranking_recipes()])
    return known[name]
