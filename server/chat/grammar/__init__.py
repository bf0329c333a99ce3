"""What an answer must look like, written as a grammar that llguidance reads."""
