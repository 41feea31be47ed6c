"""What stands beside the audio: which tracks there are, their labels, and the captions made of them."""
