"""`shoulders convert`."""

from pathlib import Path

from shoulders.backbone.frozen import FrozenLM
from shoulders.cli.show import console, quiet_libraries
from shoulders.errors import SourceNotFound, UsageError
from shoulders.scaffolds.base import Scaffold
from shoulders.scaffolds.peft_format import CONFIG as PEFT_CONFIG
from shoulders.scaffolds.peft_format import base_of, from_peft, to_peft
from shoulders.scaffolds.storage import CONFIG, read_origin


def run(source: Path, target: Path, backbone: str | None) -> None:
    """Convert in the direction that the source's files tell."""
    quiet_libraries()
    if (source / PEFT_CONFIG).exists():
        prompt = from_peft(source)
        lm = FrozenLM.load(backbone or base_of(source))
        if prompt.prompt.shape[1] != lm.width:
            raise UsageError(f"the adapter's width is {prompt.prompt.shape[1]}, that of {lm.name!r} is {lm.width}")
        prompt.made_for(lm).save_pretrained(target)
    elif (source / CONFIG).exists():
        lm = FrozenLM.load(backbone or read_origin(str(source)).backbone)
        to_peft(Scaffold.load(source, lm), lm, target)
    else:
        raise SourceNotFound(f"{source} holds neither a scaffold ({CONFIG}) nor a PEFT adapter ({PEFT_CONFIG})")
    console.print(f"written to {target}")
