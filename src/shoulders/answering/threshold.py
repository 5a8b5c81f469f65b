"""A threshold for "no answer" in the folder of what it was chosen for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from shoulders.answering.calibration import Threshold
from shoulders.answering.models import LoadedModel
from shoulders.errors import CorruptFile, UsageError
from shoulders.store.files import read_json

THRESHOLD = "threshold.json"
FORMAT = 2


@final
@dataclass(frozen=True, slots=True)
class KeptThreshold:
    """A threshold, and which passages it was chosen over.

    Attributes:
        evidence: index and fingerprint of these.
    """

    threshold: Threshold
    evidence: Mapping[str, Any]

    def doubt(self, index: str, fingerprint: str) -> str:
        """Return why it may not fit these passages; "" if it was chosen over the same, found and packed the same way.

        Args:
            index: folder of the passages.
            fingerprint: of the source of evidence.
        """
        if fingerprint == self.evidence["fingerprint"]:
            return ""
        asked = {"index": index, "fingerprint": fingerprint}
        before, now = (f"{one['index']} ({one['fingerprint'][:12]})" for one in (self.evidence, asked))
        return (
            f"the threshold for 'no answer' was chosen over {before}, and what is read now is {now}: another index, "
            "or passages found or packed in another way; choose it again (shoulders threshold)"
        )


def read_threshold(name: str, model: LoadedModel) -> KeptThreshold | None:
    """Return the threshold that lies in the folder of what answers; None if none was chosen.

    Raises:
        CorruptFile: it is broken, or of another format.
        UsageError: it was chosen for another scaffold or rival.
    """
    path = Path(name).expanduser() / THRESHOLD
    if not path.exists():
        return None
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise CorruptFile(
                f"{path} has format {content['format']}, this version reads {FORMAT}: choose it again (shoulders "
                "threshold)"
            )
        evidence = {key: str(content["evidence"][key]) for key in ("index", "fingerprint")}
        kept = KeptThreshold(Threshold.from_json(content["threshold"]), evidence)
        chosen_for = content["scaffold"]["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{path} holds no threshold: {error!r}; choose it again (shoulders threshold)") from error
    if chosen_for != model.fingerprint():
        raise UsageError(f"{path} was chosen for another scaffold: choose it again (shoulders threshold), or delete it")
    return kept
