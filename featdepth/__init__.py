"""FeatDepth: metric depth and camera motion from video, learned without labels."""
