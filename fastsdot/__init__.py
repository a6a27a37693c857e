"""Semi-discrete optimal transport from anything that can be sampled onto a data set."""
