"""Networks by name: the paper's and torchvision's; MNIST."""
