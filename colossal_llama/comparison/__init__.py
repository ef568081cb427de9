"""Models side by side: size, speed, texts, benchmark scores and what they write."""
