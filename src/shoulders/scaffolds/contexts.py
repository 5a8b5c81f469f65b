"""Which scaffolds leave the text before their prompt to the frozen model alone, so that it can be read ahead."""

from shoulders.errors import UsageError
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.input_prompt import InputPrompt
from shoulders.scaffolds.soft_prompt import SoftPrompt
from shoulders.scaffolds.weaving import Placement


def reads_before(scaffold: Scaffold) -> bool:
    """Whether the scaffold is a prompt after a text whose own states nothing reads."""
    prompt = isinstance(scaffold, SoftPrompt | InputPrompt) and scaffold.length > 0
    return prompt and scaffold.placement is not Placement.PREFIX


def check_contexts(scaffold: Scaffold) -> None:
    """Raise `UsageError` for a scaffold that trains before the text ends, or needs more of it than keys and values."""
    if reads_before(scaffold):
        return
    raise UsageError(
        f"scaffold.kind={scaffold.kind} with scaffold.placement={scaffold.placement} leaves no text before a prompt "
        "whose keys and values could be stored: leave training.contexts empty, or train scaffold.kind=soft_prompt or "
        "input_prompt with scaffold.placement=infix or suffix"
    )
