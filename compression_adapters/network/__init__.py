"""Networks: truncate, count, save, load, profile, fine-tune."""
