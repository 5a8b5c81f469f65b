"""The Markdown pages of the paper's reports: titled tables, plots, and the same numbers as JSON."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from shoulders.evaluation.report import NONE, markdown
from shoulders.store.files import save_failed, write_json


def section(
    title: str, rows: Sequence[Mapping[str, str]], words: Collection[str], note: str = "", *, known_only: bool = False
) -> str:
    """Return a table under its title, and a note below it.

    Args:
        rows: cells by the header of their column; a cell that a row lacks is a dash.
        words: columns of words, which stand to the left; numbers stand to the right.
        known_only: leave out columns that hold nothing but dashes.
    """
    headers = dict.fromkeys(header for row in rows for header in row)
    columns = {header: [row.get(header, NONE) for row in rows] for header in headers}
    if known_only:
        columns = {header: cells for header, cells in columns.items() if set(cells) != {NONE}}
    return "\n\n".join(filter(None, [f"## {title}", markdown(columns, words), note]))


def write_page(
    folder: Path,
    name: str,
    draw: Callable[[], Sequence[str]],
    parts: Callable[[list[str]], Sequence[str]],
    numbers: Mapping[str, Any],
    captions: Mapping[str, str],
) -> Path:
    """Write plots, a page (`name`.md) and its numbers (`name`.json) into a folder, and return the page.

    Args:
        draw: writes the plots, and returns the names of their files.
        parts: returns the parts of the page, given the plots as Markdown.
        captions: descriptions of the plots, by the names of their files.

    Raises:
        SaveFailed: the folder cannot be written.
    """
    page = folder / f"{name}.md"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plots = [f"![{captions[file]}]({file})" for file in draw()]
        page.write_text("\n\n".join(parts(plots)) + "\n", encoding="utf-8")
    except OSError as error:
        raise save_failed(folder, error) from error
    write_json(folder / f"{name}.json", numbers)
    return page
