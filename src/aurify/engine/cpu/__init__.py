"""What makes a CPU fast: rows side by side on cores, attention over gathered keys. It changes no results."""
