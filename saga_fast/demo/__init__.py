"""The demo, and the images that it makes."""
