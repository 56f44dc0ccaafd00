"""The synthetic street that `featdepth.data.synthetic` writes."""
