"""The fine-tuning loop on Lightning."""
