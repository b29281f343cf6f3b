"""A share of a stage's update: the policy between the one that came in and the one that the stage has trained."""
