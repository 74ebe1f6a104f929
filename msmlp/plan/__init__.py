"""How much hardware your traffic needs: a simulation with the real scheduler, admission and brown-out."""
