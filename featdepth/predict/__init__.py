"""What `python -m featdepth.predict` is made of: inputs, frames, depth, cameras, and the files that come out."""
