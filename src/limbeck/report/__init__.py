"""What a run found, drawn: the HTML report, the terminal table, the verdict and the model card.

This room draws what it is handed (:mod:`limbeck.report.model`) and knows nothing of how it was made. It needs
only the standard library, and what it writes needs no network.
"""
