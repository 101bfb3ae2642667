"""How long engines take, on what machine, and under which conditions."""
