"""DeepSeek-R1 in kind, on a small task: SmolLM2-135M-Instruct turns sentences into JSON; right answers teach.

Makes the sentences (deterministic: templates and a lexicon, so that the reference is exact), runs
``recipes/verified.yaml`` over three seeds, and writes the table. The claim under test: a student of verified text beats
one of all text, which beats one of random text of the same size.

    python benchmarks/verified.py --data            # only the sentences, to runs/data/verified.jsonl
    python benchmarks/verified.py --save            # the whole comparison
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path("runs/data/verified.jsonl")
SENTENCES = 2_000
RESULTS = Path(__file__).parent / "results" / "verified.json"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = _words(
    "Anna Ben Carla David Elena Farid Grace Hugo Irene Jonas Karin Luis Maya Nora Omar Paula Quentin Rosa "
    "Samir Tara Umar Vera Walter Xenia Yusuf Zoe Amir Bianca Cyril Dora Emil Fatima Goran Hanna Ivan "
    "Julia"
)
LAST = _words(
    "Abbott Bauer Costa Dubois Eriksen Fischer Gupta Hansen Ito Jensen Kowalski Lopez Moreau Novak Okafor "
    "Petrov Quinn Rossi Silva Tanaka Ueda Vargas Weber Young Zhang Adeyemi Brandt Castro Dahl Engel"
)
CITY = _words(
    "Lisbon Oslo Madrid Vienna Prague Dublin Warsaw Athens Zurich Geneva Hamburg Munich Porto Seville "
    "Lyon Turin Milan Bergen Malmo Gdansk Cracow Riga Tallinn Vilnius Split Zagreb Graz Basel Ghent "
    "Utrecht Cork Leeds York Bristol"
)
ITEM = _words(
    "notebook pencil lamp chair backpack kettle umbrella keyboard mug blanket pillow candle mirror basket "
    "clock wallet scarf hammer drill ladder"
)
SHOP = _words("Nordmart Bluebird Greenleaf Hillside Oakridge Sunrise Riverbank Maple Harbor Corner")
DAY = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SKY = _words("sunny cloudy rainy foggy windy snowy")
ROOM = _words("A1 A2 B1 B2 C3 C4 D5 E6")
COLOUR = _words("red blue green black white grey yellow brown")

Fields = dict[str, Any]


def person(rng: random.Random) -> tuple[str, Fields]:
    name, age, city = f"{rng.choice(FIRST)} {rng.choice(LAST)}", rng.randint(18, 79), rng.choice(CITY)
    sentence = rng.choice(
        (
            f"{name} is {age} years old and lives in {city}.",
            f"{name}, {age}, moved to {city} last spring.",
            f"At {age}, {name} still works as a nurse in {city}.",
            f"Our new colleague from {city} is called {name}; she turned {age} in May.",
            f"In {city} we met {name}, who is {age} years old.",
            f"The winner comes from {city}: {name}, aged {age}.",
        )
    )
    return sentence, {"name": name, "age": age, "city": city}


def order(rng: random.Random) -> tuple[str, Fields]:
    item, count, shop, colour = rng.choice(ITEM), rng.randint(2, 60), rng.choice(SHOP), rng.choice(COLOUR)
    sentence = rng.choice(
        (
            f"{shop} ordered {count} pieces of the {colour} {item}.",
            f"Please send {count} of the {item} in {colour} to {shop}.",
            f"The {colour} {item} is for {shop}, which needs {count} of it.",
            f"We sold the {item} in {colour} to {shop}, {count} pieces in all.",
            f"For {shop}: {count} pieces, {item}, {colour}.",
        )
    )
    return sentence, {"shop": shop, "item": item, "color": colour, "quantity": count}


def weather(rng: random.Random) -> tuple[str, Fields]:
    city, day, sky, degrees = rng.choice(CITY), rng.choice(DAY), rng.choice(SKY), rng.randint(-9, 34)
    sentence = rng.choice(
        (
            f"On {day} it will be {sky} in {city}, with {degrees} degrees.",
            f"{city} expects a {sky} {day} with a high of {degrees} degrees.",
            f"The forecast for {city}: {sky} on {day}, {degrees} degrees.",
            f"With {degrees} degrees, {day} will be {sky} in {city}.",
            f"{day} in {city} was {sky}; the thermometer showed {degrees} degrees.",
        )
    )
    return sentence, {"city": city, "day": day, "sky": sky, "temperature": degrees}


def meeting(rng: random.Random) -> tuple[str, Fields]:
    name, day, room = rng.choice(FIRST), rng.choice(DAY), rng.choice(ROOM)
    sentence = rng.choice(
        (
            f"{name} meets the team on {day} in room {room}.",
            f"Room {room} is booked by {name} for {day}.",
            f"On {day}, {name} gives a talk in room {room}.",
            f"Please tell {name} to come to room {room} on {day}.",
            f"{day}: {name}, room {room}.",
        )
    )
    return sentence, {"name": name, "day": day, "room": room}


def documents(count: int = SENTENCES, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Different conversations: a sentence to turn into JSON, and the JSON."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        sentence, fields = rng.choice((person, order, weather, meeting))(rng)
        if sentence in seen:
            continue
        seen.add(sentence)
        names = [f'"{name}"' for name in fields]
        keys = f"{', '.join(names[:-1])} and {names[-1]}"
        question = (
            f"Write this sentence as one JSON object with the keys {keys}. Answer with the JSON only.\n{sentence}"
        )
        yield {"messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": json.dumps(fields)},
        ]}  # fmt: skip


def write(path: Path = DATA, count: int = SENTENCES) -> Path:
    """Write the sentences; the same on every machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(document) + "\n" for document in documents(count)), encoding="utf-8")
    return path


def compare(overrides: list[str], save: bool) -> None:
    from limbeck.commands.run import run, show_result
    from limbeck.display import Display
    from limbeck.recipe import load_recipe
    from limbeck.runtime.provenance import machine, versions

    recipe = load_recipe("recipes/verified.yaml", overrides)
    display = Display()
    report = run(recipe, display)
    show_result(report, recipe, display)
    rows = {
        row.name: {
            name: None if (found := getattr(row, name)) is None else [found.value, found.low, found.high]
            for name in ("accuracy", "bits_per_byte")
        }
        for row in report.rows
    }
    for name, row in rows.items():
        print(f"{name:12} accuracy {row['accuracy']}")
    if save:
        RESULTS.parent.mkdir(exist_ok=True)
        found = {"rows": rows, "overrides": overrides, "machine": machine(), "versions": versions()}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="store_true", help="only make the sentences")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/verified.json")
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument("overrides", nargs="*", help="changes of the recipe: seeds=[0]")
    given = parser.parse_args()
    print(write(count=given.sentences))
    if not given.data:
        compare(given.overrides, given.save)


if __name__ == "__main__":
    main()
