"""limbeck: distil a large language model into a small one that people can run."""
