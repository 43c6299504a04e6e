"""Generation and stopping strategies that end by a certificate."""
