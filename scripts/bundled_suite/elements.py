"""Chemical elements, from mendeleev's database."""

import sqlite3
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from scripts.bundled_suite.corrections import GASES, LIQUIDS, NO_BLOCK, NO_GROUP, NO_SERIES

ROOM_TEMPERATURE = 298.15
HEAVIEST = 103  # beyond, a handful of atoms were ever made and little is known of them
SERIES = {
    "Noble gases": "a noble gas",
    "Alkali metals": "an alkali metal",
    "Alkaline earth metals": "an alkaline earth metal",
    "Metalloids": "a metalloid",
    "Halogens": "a halogen",
    "Poor metals": "a post-transition metal",
    "Transition metals": "a transition metal",
    "Lanthanides": "a lanthanide",
    "Actinides": "an actinide",
}
_QUERY = """
    select e.atomic_number, lower(e.name), e.symbol, e.period, e.group_id, e.block, s.name, e.is_radioactive,
           e.atomic_weight, max(p.melting_point), min(p.boiling_point)
    from elements e join series s on s.id = e.series_id
    left join phasetransitions p on p.atomic_number = e.atomic_number
    where e.atomic_number <= ? group by e.atomic_number order by e.atomic_number
"""


@dataclass(frozen=True, slots=True)
class Element:
    """A chemical element; None stands for what is unknown or what books disagree on."""

    number: int
    name: str
    symbol: str
    period: int
    group: int | None
    block: str | None
    series: str | None  # with its article: "a noble gas"
    state: str | None
    weight: float | None


def read_elements() -> list[Element]:
    """The elements up to lawrencium, in the order of their numbers."""
    spec = find_spec("mendeleev")
    if spec is None or spec.origin is None:
        raise SystemExit("mendeleev is missing: pip install --no-deps -r scripts/bundled_suite/requirements.txt")
    path = Path(spec.origin).parent / "elements.db"
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [_element(*row) for row in connection.execute(_QUERY, (HEAVIEST,))]
    finally:
        connection.close()


def _element(number: int, name: str, symbol: str, period: int, group: int | None, block: str, *rest: object) -> Element:
    series, radioactive, weight, melting, boiling = rest
    return Element(
        number,
        name,
        symbol,
        period,
        None if name in NO_GROUP else group,
        None if name in NO_BLOCK else block,
        None if name in NO_SERIES else SERIES.get(str(series)),
        _state(name, bool(radioactive), melting, boiling),
        None if radioactive else round(float(str(weight)), 1),
    )


def _state(name: str, radioactive: bool, melting: object, boiling: object) -> str | None:
    """Solid, liquid or gas at room temperature; the database must agree with the short list of those not solid."""
    if radioactive and name != "radon":
        return None
    state = "solid"
    if isinstance(boiling, float) and boiling < ROOM_TEMPERATURE:
        state = "gas"
    elif isinstance(melting, float) and melting < ROOM_TEMPERATURE:
        state = "liquid"
    wanted = "gas" if name in GASES else "liquid" if name in LIQUIDS else "solid"
    if state != wanted:
        raise ValueError(f"{name}: {state} by its melting and boiling points, but {wanted} by the list")
    return state
