"""What a model is worth, in numbers: its loss, its sound beside the corpus, what it steers and what it copies."""
