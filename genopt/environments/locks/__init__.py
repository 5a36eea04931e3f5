"""Lock files of the engine environments."""
