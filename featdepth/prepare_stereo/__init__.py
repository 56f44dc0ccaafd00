"""Own stereo made ready for training: pairing two cameras' pictures, rectifying them, checking sides and units."""
