"""Generation strategies and stopping strategies that end by a certificate."""
