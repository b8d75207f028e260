"""Questions about ships (`search`): the image identifies the ship, and only its document has the answer."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw

from vlm_grpo.io import json_line, write_once
from vlm_grpo.synthetic.example import Example
from vlm_grpo.synthetic.fonts import draw_text
from vlm_grpo.synthetic.shape_scenes import COLORS

FIRST = ("Silver", "Golden", "Northern", "Swift", "Silent", "Brave", "Crimson", "Winter", "Morning", "Lucky")
SECOND = ("Heron", "Otter", "Lantern", "Anchor", "Falcon", "Meadow", "Comet", "Dolphin", "Harbour", "Willow")
PORTS = ("Bergen", "Porto", "Trieste", "Gdansk", "Cork", "Bilbao", "Riga", "Piraeus", "Bordeaux", "Lisbon")
CARGOES = ("timber", "salt", "copper", "oranges", "wool", "marble", "grain", "tea", "olive oil", "glass")
SURNAMES = ("Almeida", "Berg", "Castel", "Dahl", "Eriksen", "Fabre", "Gallo", "Hansen", "Iversen", "Jansen")
GIVEN = ("Ada", "Bruno", "Clara", "David", "Elsa", "Felix", "Greta", "Hugo", "Irene", "Jonas")
SEED = 11  # seed of the facts, so that all data sets share one library


class Ship(NamedTuple):
    """The facts about a ship in its document."""

    name: str
    launched: int
    port: str
    cargo: str
    captain: str


QUESTIONS = {
    "launched": "In which year was the ship in the picture launched?",
    "port": "What is the home port of the ship in the picture?",
    "cargo": "What does the ship in the picture carry?",
    "captain": "Who is the captain of the ship in the picture?",
}


@lru_cache(maxsize=1)
def ships() -> tuple[Ship, ...]:
    """Return all ships (deterministic); each word of a name occurs in ten names."""
    random = Random(SEED)
    return tuple(
        Ship(
            f"{first} {second}",
            random.randint(1850, 1990),
            random.choice(PORTS),
            random.choice(CARGOES),
            f"{random.choice(GIVEN)} {random.choice(SURNAMES)}",
        )
        for first in FIRST
        for second in SECOND
    )


def document(ship: Ship) -> str:
    """Return the document about a ship."""
    return (
        f"The {ship.name} is a cargo ship. She was launched in {ship.launched} and has her home port in {ship.port}. "
        f"Her captain is {ship.captain}. Most of the year the {ship.name} carries {ship.cargo}."
    )


def write_documents(path: str | Path) -> Path:
    """Write the library as a jsonl file for `vlm-grpo index`; an identical file is left untouched.

    Raises:
        FileExistsError: the file has other content.
    """
    rows = ({"id": ship.name.lower().replace(" ", "-"), "title": ship.name, "text": document(ship)} for ship in ships())
    write_once(Path(path), b"".join(map(json_line, rows)))
    return Path(path)


def search_example(random: Random, number: int, side: int) -> Example:
    """Return an image of a ship with its name on the hull, and a question that only its document answers."""
    ship = random.choice(ships())
    field = random.choice(list(QUESTIONS))
    image = draw_ship(ship.name, COLORS[random.choice(list(COLORS))], random.uniform(0.25, 0.6), side)
    return Example(f"<image>{QUESTIONS[field]}", str(getattr(ship, field)), (image,))


def draw_ship(name: str, color: tuple[int, int, int], funnel: float, side: int) -> Image.Image:
    """Return an image of a ship with its name on the hull, and its funnel at a fraction of the width."""
    image = Image.new("RGB", (side, side), (205, 226, 242))
    pen = ImageDraw.Draw(image)

    def at(*shares: float) -> list[float]:
        return [side * share for share in shares]

    pen.rectangle(at(0, 0.76, 1, 1), fill=(40, 92, 140))
    pen.rectangle(at(funnel, 0.2, funnel + 0.1, 0.42), fill=(70, 70, 76))
    pen.rectangle(at(0.2, 0.4, 0.72, 0.55), fill="white", outline=(120, 120, 128))
    for window in range(5):
        left = 0.25 + 0.09 * window
        pen.rectangle(at(left, 0.45, left + 0.05, 0.5), fill=(90, 140, 180))
    pen.polygon([tuple(at(*point)) for point in ((0.04, 0.55), (0.97, 0.55), (0.86, 0.8), (0.12, 0.8))], fill=color)
    paper = "black" if sum(color) > 380 else "white"
    draw_text(pen, (side / 2, side * 0.675), name.upper(), side * 0.075, fill=paper)
    return image
