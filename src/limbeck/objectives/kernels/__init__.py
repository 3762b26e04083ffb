"""The pointwise work over one chunk of logits: in plain torch, in C++ for CPUs, in Triton for CUDA."""
