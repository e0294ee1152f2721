"""What single steps of a response earn: step rewards, guards against hacking them, implicit rewards."""
