"""What a compiled program needs and does, read off the compiler's own result, without hardware and without allocating an array."""
