"""File contracts of audiocraft and transformers, converters between them, and the opening of a base."""
