"""Teachers that can only be called: wire formats, a client, pacing, and the sampler over HTTP."""
