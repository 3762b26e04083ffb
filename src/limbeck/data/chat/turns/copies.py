"""Which of the places where a piece of a conversation stands is in its own turn: templates quote answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.data.chat.templates import Messages, Template
from limbeck.data.chat.turns.surroundings import Span, Surroundings, own_copy, surroundings_of, unclear

Cut = tuple[dict[int, list[Span]], str]
"""Where pieces stand in a conversation that is cut, and its text."""


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

    def chosen(
        self,
        messages: Messages,
        tools: Sequence[dict[str, Any]],
        template: Template,
        cut: Callable[..., Cut | None],
    ) -> dict[int, Span]:
        """Of every piece the place that is in the turn of its message.

        Args:
            cut: the conversation up to a message, with ``prompt`` or without; None where the template refuses it.

        Raises:
            InputError: an answer stands in several places, and the one in its turn cannot be told from the others.
        """
        found = {n: spans[0] for n, spans in self.places.items()}
        quoted = {self.pieces[n][0] for n, spans in self.places.items() if len(spans) > 1} - {-1}
        if not quoted:
            return found
        around = surroundings_of(template, messages, tools)
        weighed: dict[int, list[dict[int, Span]]] = {}
        for i in sorted(quoted):
            runs = self._runs(i)
            is_answer = messages[i]["role"] == "assistant"
            turn = self._asked_for(runs, cut(i, prompt=True)) if is_answer and i else None
            turn = turn or self._written_once(runs, cut(i + 1, prompt=False))
            if turn is None:
                turn = self._turn(runs, template, around if is_answer else Surroundings())
                weighed |= {i: runs} if is_answer else {}
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
        if any(self._is_doubtful(i, runs, found) for i, runs in weighed.items()):
            raise unclear(template)
        return found

    def _is_doubtful(self, i: int, runs: list[dict[int, Span]], found: dict[int, Span]) -> bool:
        """Whether the turn stands before the one before it or behind the next, and another copy between them."""
        starts: dict[int, int] = {}
        for n, span in sorted(found.items(), reverse=True):
            starts[self.pieces[n][0]] = min(span[0], starts.get(self.pieces[n][0], span[0]))
        low, high = starts.get(i - 1, -1), starts.get(i + 1, len(self.text) + 1)
        between = [low < min(run.values())[0] < high for run in runs]
        return i in starts and not low < starts[i] < high and any(between)

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

    def _asked_for(self, runs: list[dict[int, Span]], cut: Cut | None) -> dict[int, Span] | None:
        """The run that stands directly behind the conversation in which this message is asked for."""
        asked = cut[1].rstrip() if cut else None
        return next((run for run in runs if self.text[: min(run.values())[0]].rstrip() == asked), None)

    def _written_once(self, runs: list[dict[int, Span]], cut: Cut | None) -> dict[int, Span] | None:
        """The run that the conversation which ends with this message has too, where it has no other: later turns quote
        it, in a header, say."""
        if cut is None:
            return None
        places, text = cut
        for run in runs:
            end = max(run.values())[1]
            if text[:end] == self.text[:end] and all(places.get(n) == [span] for n, span in run.items()):
                return run
        return None

    def _turn(self, runs: list[dict[int, Span]], template: Template, around: Surroundings) -> dict[int, Span] | None:
        """The run that looks like a turn."""
        spans = [(min(run.values())[0], max(run.values())[1]) for run in runs]
        own = {n for run in runs for n in run}
        others = [span for n, found in self.places.items() if n not in own for span in found]
        best = own_copy(template, self.text, spans, sorted([*spans, *others]), around)
        return runs[spans.index(best)] if best else None
