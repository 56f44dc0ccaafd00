"""What `featdepth.predict` reads and writes."""
