"""Who draws a step's responses, from which weights, in the background or in pieces."""
