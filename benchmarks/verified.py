"""DeepSeek-R1 in kind, on a small task: SmolLM2-135M-Instruct turns orders into JSON; right answers teach.

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


ITEM = _words(
    "notebook pencil lamp chair backpack kettle umbrella keyboard mug blanket pillow candle mirror basket "
    "clock wallet scarf hammer drill ladder towel bottle helmet jacket guitar camera printer shovel bucket rope"
)
SHOP = _words(
    "Nordmart Bluebird Greenleaf Hillside Oakridge Sunrise Riverbank Maple Harbor Corner Lakeview Foxglove Stonegate "
    "Brightway Elmwood Redwood Silverlake Northgate Ivory Meadow"
)
COLOUR = _words("red blue green black white grey yellow brown purple orange pink silver")

SYSTEM = "You turn sentences into JSON."

Fields = dict[str, Any]


def order(rng: random.Random) -> tuple[str, Fields]:
    """A sentence, and what it says."""
    item, count, shop, colour = rng.choice(ITEM), rng.randint(2, 60), rng.choice(SHOP), rng.choice(COLOUR)
    sentence = rng.choice(
        (
            f"{shop} ordered {count} pieces of the {colour} {item}.",
            f"Please send {count} of the {item} in {colour} to {shop}.",
            f"The {colour} {item} is for {shop}, which needs {count} of it.",
            f"We sold the {item} in {colour} to {shop}, {count} pieces in all.",
            f"For {shop}: {count} pieces, {item}, {colour}.",
            f"{count} times the {colour} {item}, please; {shop} will pay.",
            f"Is the {item} still there in {colour}? {shop} would take {count}.",
        )
    )
    return sentence, {"shop": shop, "item": item, "color": colour, "quantity": count}


def documents(count: int = SENTENCES, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Different conversations: a sentence to turn into JSON, and the JSON."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        sentence, fields = order(rng)
        if sentence in seen:
            continue
        seen.add(sentence)
        yield {"messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": sentence},
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
