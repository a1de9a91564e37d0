"""One module per family: its job, the loop its techniques share, its gates, `generate` and `logprobs`."""
