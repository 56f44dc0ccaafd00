"""Trajectories: chained motions, their files and scores."""
