"""A flow-matching robot policy on any vision-language model, with gradient isolation that keeps what it knew."""
