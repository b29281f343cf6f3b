"""Learning from rewards: estimates, controllers, critics, references, and what is watched while a policy learns."""
