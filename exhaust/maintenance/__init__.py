"""The daily run: deletes what has reached its age, and checks what is left."""
