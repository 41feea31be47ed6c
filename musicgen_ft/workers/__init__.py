"""What a worker of prepare needs, wherever it runs: its encoder, and Ray's way of starting it."""
