"""What two frames of a video say: points found again, the motion of the camera, its focal length."""
