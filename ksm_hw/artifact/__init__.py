"""What compiler and runtime agree on: an artifact's folder, and the parameters of its functions."""
