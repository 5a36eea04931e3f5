"""Engine environments: virtual environments beside ours, for engines whose dependencies exclude each other."""
