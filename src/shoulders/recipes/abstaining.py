"""A reader's threshold for "no answer": kept beside its scaffold."""

from pathlib import Path

from shoulders.adaptive.abstaining import Threshold
from shoulders.backbone.fingerprint import identity
from shoulders.errors import CorruptFile, UsageError
from shoulders.files import read_json
from shoulders.scaffolds.base import Scaffold

THRESHOLD = "threshold.json"
FORMAT = 1


def read_threshold(name: str, scaffold: Scaffold) -> Threshold | None:
    """The threshold that lies in a scaffold's folder; None if none was chosen.

    Raises:
        CorruptFile: it is broken, or of a newer format.
        UsageError: it was chosen for another scaffold.
    """
    path = Path(name).expanduser() / THRESHOLD
    if not path.exists():
        return None
    content = read_json(path)
    try:
        if content["format"] > FORMAT:
            raise CorruptFile(f"{path} has format {content['format']}, this version reads up to {FORMAT}: update")
        threshold = Threshold.from_json(content["threshold"])
        chosen_for = content["scaffold"]["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{path} holds no threshold: {error!r}; choose it again (shoulders threshold)") from error
    if chosen_for != identity(scaffold):
        raise UsageError(f"{path} was chosen for another scaffold: choose it again (shoulders threshold), or delete it")
    return threshold
