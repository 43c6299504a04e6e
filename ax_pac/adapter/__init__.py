"""The parts of Ax's modular BoTorch generator: acquisition, transforms, generator."""
