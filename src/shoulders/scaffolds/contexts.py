"""Whether what the frozen model makes of a text by itself can be stored beside a scaffold, which says so of itself."""

from shoulders.errors import UsageError
from shoulders.scaffolds.base import Scaffold


def check_contexts(scaffold: Scaffold) -> None:
    """Raise `UsageError` for a scaffold that trains before the text ends, or needs more of it than keys and values."""
    if scaffold.reads_before:
        return
    raise UsageError(
        f"scaffold.kind={scaffold.kind} with scaffold.placement={scaffold.placement} leaves no text before a prompt "
        "whose keys and values could be stored: leave training.contexts empty, or train scaffold.kind=soft_prompt or "
        "input_prompt with scaffold.placement=infix or suffix"
    )


def check_first_pass(scaffold: Scaffold) -> None:
    """Raise `UsageError` for a scaffold whose first pass is not that of the bare model: its states cannot be stored."""
    if scaffold.trained_before:
        raise UsageError(
            f"{scaffold.trained_before} trains before the first pass ends, so that its states are no constants that "
            "could be stored: leave training.first_pass empty, or train scaffold.kind=recursion with "
            "scaffold.inner=bare"
        )
