"""Reading checkpoints and writing MLX model folders, usable without the server."""
