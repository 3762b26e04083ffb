"""A realistic report to draw in the tests: five models, noisy curves of 300 points, four samples."""

from __future__ import annotations

import math
import random

from limbeck.report.model import Chart, Curve, Estimate, Fact, ReportData, Row, Sample

_TEXTS = {
    "teacher": "Return a list of the names of all files in the directory. The list is in arbitrary order and "
    "does not include the special entries '.' and '..'.\n\nIf path is a bytes object, the names are bytes.",
    "alone": "Return a string of the file. If the argument is a file, the file is a file of the file and the "
    "path of the path is returned.",
    "soft": "Return the list of files in the directory. The path may be a string or a bytes object, and the "
    "names are returned as strings.",
    "hard": "Return a list of the names of the files in the given path.\n\n    If path is not given, the "
    "current directory is used.",
    "co": "Return True if the path is a directory, else False. The names are in the list of paths.",
}
_PROMPTS = (
    "List the contents of a directory.",
    "Parse the header of a message and",
    "This class implements a thread-safe queue. It",
    "Raise ValueError if",
)


def rows() -> list[Row]:
    """Teacher, control and three techniques: one beats the control, one is unclear, one is worse."""
    return [
        Row(
            "teacher", "teacher", 3_912_960, 15_651_840,
            bits_per_byte=Estimate(1.5702, 1.5411, 1.5988),
            tokens_per_second=Estimate(412.0, 403.8, 420.2), shape="large",
            train_tokens=2_000_000,
        ),
        Row(
            "alone", "control", 419_424, 1_677_696,
            bits_per_byte=Estimate(1.6548, 1.6262, 1.6851), kl=Estimate(0.412, 0.401, 0.424),
            agreement=Estimate(0.512, 0.506, 0.518), gap_closed=Estimate(0.0),
            tokens_per_second=Estimate(1287.0, 1261.3, 1312.7), shape="small",
            train_tokens=1_600_000,
        ),
        Row(
            "soft", "student", 419_424, 1_677_696,
            bits_per_byte=Estimate(1.6284, 1.5990, 1.6571), kl=Estimate(0.142, 0.137, 0.147),
            agreement=Estimate(0.661, 0.655, 0.667), gap_closed=Estimate(0.312, 0.263, 0.360),
            versus_control=Estimate(-0.0264, -0.0301, -0.0226),
            tokens_per_second=Estimate(1291.0, 1265.2, 1316.8), shape="small",
            train_tokens=1_600_000,
        ),
        Row(
            "hard", "student", 419_424, 1_677_696,
            bits_per_byte=Estimate(1.6931, 1.6640, 1.7230), kl=Estimate(0.389, 0.378, 0.401),
            agreement=Estimate(0.534, 0.528, 0.540), gap_closed=Estimate(-0.453, -0.537, -0.371),
            versus_control=Estimate(0.0383, 0.0312, 0.0455),
            tokens_per_second=Estimate(1279.0, 1253.4, 1304.6), shape="small",
            train_tokens=1_600_000, note="82% of the tokens are the teacher's own text",
        ),
        Row(
            "co", "student", 419_424, 1_677_696,
            bits_per_byte=Estimate(1.6531, 1.6239, 1.6822), kl=Estimate(0.201, 0.195, 0.208),
            agreement=Estimate(0.612, 0.606, 0.618), gap_closed=Estimate(0.020, -0.031, 0.066),
            versus_control=Estimate(-0.0017, -0.0056, 0.0026),
            tokens_per_second=Estimate(1284.0, 1258.3, 1309.7), shape="small",
            train_tokens=1_600_000,
        ),
    ]  # fmt: skip


def data() -> ReportData:
    """The whole report."""
    rng = random.Random(7)
    steps = [float(8 * i) for i in range(300)]

    def losses(end: float, speed: float) -> list[float]:
        return [end + (7.6 - end) * math.exp(-speed * i / 300) + rng.gauss(0, 0.09) for i in range(300)]

    training = Chart(
        "Training loss",
        "step",
        "cross-entropy, nats per token",
        [
            Curve("teacher", steps, losses(4.25, 9), ("teacher", "")),
            Curve("alone", steps, losses(4.56, 7), ("alone", "")),
            Curve("soft", steps, losses(4.49, 8), ("soft", "")),
            Curve("hard", steps, losses(3.35, 8), ("hard", "")),
            Curve("co", steps, losses(4.53, 6), ("co", "")),
        ],
        caption="hard learns the teacher's own text, which is easier to predict than people's.",
    )
    held_out = Chart(
        "Held-out bits per byte",
        "training tokens",
        "bits per byte",
        [
            Curve(
                name, [1e5 * i for i in range(1, 17)], [end + 1.4 * math.exp(-i / 3) for i in range(1, 17)], (name, "")
            )
            for name, end in (("alone", 1.651), ("soft", 1.622), ("hard", 1.688), ("co", 1.648))
        ],
        log_x=True,
    )
    samples = [Sample(prompt, {(name, ""): text for name, text in _TEXTS.items()}) for prompt in _PROMPTS[:3]]
    samples.append(
        Sample(
            _PROMPTS[3],
            {(name, ""): text for name, text in _TEXTS.items()},
            reference="the pattern is not a valid expression.",
        )
    )
    return ReportData(
        title="limbeck demo: the standard library's docstrings",
        rows=rows(),
        warnings=["One seed each: the intervals cover the choice of documents, not the luck of training."],
        charts=[training, held_out],
        samples=samples,
        provenance={
            "Data": [
                Fact("Corpus", "6,758 docstrings of Python 3.11.2, 1.7 MB"),
                Fact("Fingerprint", "sha256:9b1f6f0c0f3e5d4a2b7c8d9e0f1a2b3c4d5e6f708192a3b4c5d6e7f8091a"),
                Fact("Held out", "338 documents (5%), chosen by the hash of the text"),
            ],
            "Models": [
                Fact("Teacher", "llama, 256 wide, 4 layers, trained in this run"),
                Fact("Student", "llama, 96 wide, 2 layers"),
                Fact("Tokenizer", "byte-level BPE, 2,048 tokens"),
            ],
            "Machine": [
                Fact("Processor", "2 cores, x86_64"),
                Fact("Software", "limbeck 0.1.0, torch 2.13.0, transformers 5.3.0"),
                Fact("Seed", "0"),
            ],
        },
        recipe_yaml="name: demo\nteacher:\n  config: {model_type: llama, hidden_size: 256}\n"
        "student:\n  config: {model_type: llama, hidden_size: 96, num_hidden_layers: 2}\n"
        "techniques:\n  - {kind: soft, divergence: forward_kl, temperature: 1.0, mix: 0.5}\n"
        "  - {kind: hard, max_new_tokens: 128, sampling: {temperature: 0.8, top_p: 0.95}}\n  - {kind: co}\n"
        "training:\n  max_tokens: 1600000\n  lr: 3.0e-3\n  batch_tokens: 8192\n",
        command="limbeck report runs/demo",
        created="2026-11-24T17:40:00+00:00",
    )
