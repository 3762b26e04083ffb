"""Log-probabilities as JSON lines: responses of vLLM's server, and prepared data sets of axolotl.

vLLM: a line holds ``prompt_token_ids`` [T] and ``prompt_logprobs`` [T], at its top or in its one choice. Entry t is
what the model said *of* token t, so position t - 1 predicts it; entry 0 is null.

axolotl: a line (or a row of Parquet) holds ``input_ids`` [T], ``target_token_ids`` and ``target_logprobs`` [T, k], and
``target_mask``. Row j is what was said of token j + 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from limbeck.errors import InputError
from limbeck.signals.exchange.scored import Scored

AXOLOTL = {"input_ids", "target_token_ids", "target_logprobs"}


def read_json_lines(file: Path) -> Iterator[Scored]:
    """The texts in a file of JSON lines.

    Raises:
        InputError: a line is no JSON, or of neither kind.
    """
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                plain = json.loads(line)
            except ValueError as error:
                raise InputError(f"{where} is no JSON ({error})") from None
            yield of_plain(plain, where)


def read_axolotl_parquet(file: Path) -> Iterator[Scored]:
    number = 0
    for batch in pq.ParquetFile(file).iter_batches(batch_size=16):
        for row in batch.to_pylist():
            yield of_plain(row, f"{file}, row {number}")
            number += 1


def of_plain(plain: Any, where: str) -> Scored:
    try:
        if isinstance(plain, Mapping) and set(plain) >= AXOLOTL:
            return _axolotl(plain, where)
        choices = plain.get("choices")
        return _vllm({**plain, **choices[0]} if choices else plain, where)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{where} has neither `prompt_token_ids` and `prompt_logprobs` (vLLM) nor `input_ids`, `target_token_ids` "
            f"and `target_logprobs` (axolotl), or not as they write them ({error!r})",
            fix="Ask vLLM with `prompt_logprobs: K` and `return_token_ids: true`",
        ) from None


def _vllm(plain: Mapping[str, Any], where: str) -> Scored:
    ids = np.array(plain["prompt_token_ids"], np.int64)
    said = [each or {} for each in plain["prompt_logprobs"]]
    if len(said) != len(ids):
        raise ValueError(f"{len(said)} prompt_logprobs for {len(ids)} tokens")
    entries = [(int(token), value) for each in said[1:] for token, value in each.items()]
    logprobs = [value["logprob"] if isinstance(value, Mapping) else value for _, value in entries]
    return Scored(
        where,
        ids,
        np.array([len(each) for each in said[1:]], np.int64),
        np.array([token for token, _ in entries], np.int64),
        np.array(logprobs, np.float32),
    )


def _axolotl(plain: Mapping[str, Any], where: str) -> Scored:
    ids = np.array(plain["input_ids"], np.int64)
    counts, tokens, logprobs = [], [], []
    for row_tokens, row_logprobs in zip(plain["target_token_ids"], plain["target_logprobs"], strict=True):
        kept = [(t, p) for t, p in zip(row_tokens, row_logprobs, strict=True) if p is not None and p > -1e4]
        counts.append(len(kept))
        tokens += [t for t, _ in kept]
        logprobs += [p for _, p in kept]
    return Scored(where, ids, np.array(counts, np.int64), np.array(tokens, np.int64), np.array(logprobs, np.float32))
