"""How much hardware a traffic needs: a simulation with the real scheduler, admission and brown-out."""
