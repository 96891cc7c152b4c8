"""What the tests compare with: plain loops, nothing of JAX, nothing of ours."""
