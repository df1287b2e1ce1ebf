"""How the reference model and its scorer are trained, stage by stage."""
