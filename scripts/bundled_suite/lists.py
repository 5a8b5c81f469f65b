"""Word lists, written as running text."""


def words(text: str) -> frozenset[str]:
    """The set of the text's words."""
    return frozenset(text.split())


def phrases(text: str) -> frozenset[str]:
    """The set of what stands between bars."""
    return frozenset(" ".join(part.split()) for part in text.split("|"))


def ordered(text: str) -> tuple[str, ...]:
    """The text's words in their order."""
    return tuple(text.split())
