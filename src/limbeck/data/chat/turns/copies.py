"""Which of the places where a piece of a conversation stands is in its own turn: templates quote answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.data.chat.templates import Messages, Template
from limbeck.data.chat.turns.surroundings import Span, Surroundings, own_copy, surroundings_of, unclear


@dataclass(frozen=True)
class Copies:
    """Where pieces stand, some of them several times: a template may quote an answer before it comes, or after.

    Attributes:
        places: by piece, where it stands.
        pieces: its message and its kind.
    """

    places: dict[int, list[Span]]
    pieces: list[tuple[int, str]]
    text: str

    def chosen(self, messages: Messages, tools: Sequence[dict[str, Any]], template: Template) -> dict[int, Span]:
        """Of every piece the place that is in the turn of its message.

        Raises:
            InputError: an answer stands in several places, and the one in its turn cannot be told from the others.
        """
        found = {n: spans[0] for n, spans in self.places.items()}
        quoted = {self.pieces[n][0] for n, spans in self.places.items() if len(spans) > 1} - {-1}
        if not quoted:
            return found
        around = surroundings_of(template, messages, tools)
        for i in sorted(quoted):
            runs = self._runs(i)
            is_answer = messages[i]["role"] == "assistant"
            turn = self._turn(runs, template, around if is_answer else Surroundings())
            if turn is None:
                if is_answer:
                    raise unclear(template)
                continue
            # A run that repeats a piece of the turn is a quotation; a result may part a turn in runs that do not.
            parts = [turn, *(run for run in runs if not run.keys() & turn.keys())]
            start = min(turn.values())[0]
            for n in {n for run in runs for n in run}:
                places = [run[n] for run in parts if n in run]
                if places:
                    found[n] = min(places, key=lambda span: (span[0] < start, abs(span[0] - start)))
                else:
                    del found[n]  # a thought, say, that its turn leaves out and a quotation does not
        return found

    def _runs(self, i: int) -> list[dict[int, Span]]:
        """Pieces of a message, none of them twice, with nothing of another message between."""
        own = {n for n in self.places if self.pieces[n][0] == i}
        others = sorted(span[0] for n, spans in self.places.items() if n not in own for span in spans)
        runs: list[dict[int, Span]] = []
        for span, n in sorted((span, number) for number in own for span in self.places[number]):
            end = max(runs[-1].values())[1] if runs else 0
            if not runs or n in runs[-1] or any(end <= other < span[0] for other in others):
                runs.append({})
            runs[-1][n] = span
        return runs

    def _turn(self, runs: list[dict[int, Span]], template: Template, around: Surroundings) -> dict[int, Span] | None:
        """The run that looks like a turn."""
        spans = [(min(run.values())[0], max(run.values())[1]) for run in runs]
        own = {n for run in runs for n in run}
        others = [span for n, found in self.places.items() if n not in own for span in found]
        best = own_copy(template, self.text, spans, sorted([*spans, *others]), around)
        return runs[spans.index(best)] if best else None
