"""Writes depth priors: the maps that a large depth model, or one of ours, predicts for the frames of a data set."""
