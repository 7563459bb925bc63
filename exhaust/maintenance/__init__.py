"""The daily run: deletes rows and files that have reached their age, and checks the others."""
