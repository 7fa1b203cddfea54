"""What speaks to Ray, and how it is decided what to say."""
