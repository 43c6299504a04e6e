"""The parts of Ax's BoTorch generator: acquisition, transforms, generator."""
