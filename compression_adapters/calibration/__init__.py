"""What layers really see: moments over calibration inputs, and factors fitted to it."""
