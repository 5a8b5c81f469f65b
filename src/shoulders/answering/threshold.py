"""The threshold for "no answer", stored in the folder of its scaffold or rival."""

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
class StoredThreshold:
    """A threshold, and the passages that it was chosen over.

    Attributes:
        evidence: index and fingerprint of the passages.
    """

    threshold: Threshold
    evidence: Mapping[str, Any]

    def doubt(self, index: str, fingerprint: str) -> str:
        """Return why the threshold may not fit some passages; "" if it was chosen over the same, packed alike.

        Args:
            index: folder of the passages.
            fingerprint: of the source of evidence.
        """
        if fingerprint == self.evidence["fingerprint"]:
            return ""
        current = {"index": index, "fingerprint": fingerprint}
        before, now = (f"{one['index']} ({one['fingerprint'][:12]})" for one in (self.evidence, current))
        return (
            f"the threshold for 'no answer' was chosen over {before}, and what is read now is {now}: another index, "
            "or passages found or packed in another way; choose it again (shoulders threshold)"
        )


def read_threshold(name: str, model: LoadedModel) -> StoredThreshold | None:
    """Return the threshold that is stored beside a scaffold or rival; None if there is none.

    Raises:
        CorruptFile: the file is broken, or of another format.
        UsageError: the threshold was chosen for another scaffold or rival.
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
        kept = StoredThreshold(Threshold.from_json(content["threshold"]), evidence)
        chosen_for = content["scaffold"]["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{path} holds no threshold: {error!r}; choose it again (shoulders threshold)") from error
    if chosen_for != model.fingerprint():
        raise UsageError(f"{path} was chosen for another scaffold: choose it again (shoulders threshold), or delete it")
    return kept
